#version 330
//#include light.glsl
uniform vec3 colours[32];  // two per material
uniform vec4 styles[16];   // pattern kind, frequency, gloss, contrast
uniform bool catcher;      // the floor only darkens the backdrop where it is in shadow
in vec3 world;
in vec3 world_normal;
in vec2 surface;
flat in int kind;
in vec4 light_position;
out vec4 colour;

void main() {
    if (catcher && kind == 0) {
        float fade = clamp(1.0 - length(world.xy) / 3.0, 0.0, 1.0);
        colour = vec4(0.0, 0.0, 0.0, 0.55 * fade * (1.0 - shadow(light_position, 0.0)));
        return;
    }
    vec4 style = styles[kind];
    vec2 q = surface * style.y;
    int pattern = int(style.x + 0.5);
    float share = noise(vec3(q, 1.0));
    if (pattern == 1) share = step(0.0, sin(q.x * 3.1416) * sin(q.y * 3.1416));
    if (pattern == 2) share = smoothstep(0.9, 0.97, max(fract(q.x), fract(q.y)));
    if (pattern == 3) share = 0.6 * fract(sin(floor(q.x) * 12.99 + floor(q.y * 0.2) * 78.2) * 437.5)
        + 0.4 * noise(vec3(q.x * 8.0, q.y, 0.0));
    if (pattern == 4) share = step(0.5, fract(q.x));
    if (pattern == 5) share = 0.5 * noise(vec3(q, 0.0)) + 0.3 * noise(vec3(q * 3.0, 2.0))
        + 0.2 * noise(vec3(q * 9.0, 5.0));
    if (pattern == 6) share = step(0.5, hash(vec3(floor(q), 3.0)));
    vec3 albedo = mix(colours[2 * kind], colours[2 * kind + 1], share * style.w);
    colour = finish(shade(albedo, normalize(world_normal), world, light_position, style.z));
}
