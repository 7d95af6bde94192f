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
    vec4 cloud = texture(noise_map, (pattern == 3 ? q * vec2(4.0, 1.0) : q) / 32.0);
    vec2 cell = floor(q);
    float dice = fract(sin(cell.x * 12.99 + (pattern == 3 ? floor(q.y * 0.2) : cell.y) * 78.2) * 437.5);
    float share = cloud.r;
    if (pattern == 1) share = step(0.0, sin(q.x * 3.1416) * sin(q.y * 3.1416));
    if (pattern == 2) share = smoothstep(0.9, 0.97, max(fract(q.x), fract(q.y)));
    if (pattern == 3) share = 0.6 * dice + 0.4 * cloud.r;
    if (pattern == 4) share = step(0.5, fract(q.x));
    if (pattern == 5) share = cloud.g;
    if (pattern == 6) share = step(0.5, dice);
    vec3 albedo = mix(colours[2 * kind], colours[2 * kind + 1], share * style.w);
    colour = finish(shade(albedo, normalize(world_normal), world, light_position, 0.0));
}
