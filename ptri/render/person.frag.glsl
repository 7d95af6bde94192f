#version 330
//#include light.glsl
uniform vec3 colours[12];  // two per layer: skin, bottom, top, shoe, hair, eye
uniform vec4 styles[6];    // pattern kind, frequency, gloss, wrinkles
uniform vec3 face[3];      // rest positions of left eye, right eye, mouth
uniform bool tucked;
in vec3 world;
in vec3 world_normal;
in vec3 rest;
in vec4 layer;
in float is_eye;
in vec4 light_position;
out vec4 colour;

float mixing(int kind, vec3 p, float frequency) {
    vec3 q = p * frequency;
    if (kind == 1) return step(0.0, sin(q.z * 3.1416));
    if (kind == 2) return step(0.0, sin(q.x * 3.1416));
    if (kind == 3) return 0.5 * (step(0.0, sin(q.x * 3.1416)) + step(0.0, sin(q.z * 3.1416)));
    if (kind == 4) return smoothstep(0.45, 0.55, noise(q * 0.5));
    if (kind == 5) return step(length(fract(q.xz) - 0.5), 0.28);
    return 0.15 * noise(q);
}
void main() {
    int kind = 0;
    bool bottom_first = tucked && layer.x > 0.0;
    if (is_eye > 0.5) kind = 5;
    else if (layer.w > 0.0) kind = 4;
    else if (layer.y > 0.0 && !bottom_first) kind = 2;
    else if (layer.z > 0.0) kind = 3;
    else if (layer.x > 0.0) kind = 1;
    else if (layer.y > 0.0) kind = 2;
    vec4 style = styles[kind];
    vec3 n = normalize(gl_FrontFacing ? -world_normal : world_normal);
    float share = mixing(int(style.x + 0.5), rest, style.y);
    if (kind == 4) share = noise(rest * vec3(90.0, 90.0, 12.0));
    if (kind == 5) {
        vec3 c = rest.x > 0.0 ? face[0] : face[1];
        share = length(rest.xz - c.xz) < 0.0065 ? 1.0 : 0.0;
    }
    vec3 albedo = mix(colours[2 * kind], colours[2 * kind + 1], share);
    if (kind == 0) {
        albedo = colours[0] * (0.92 + 0.16 * noise(rest * 40.0));
        vec2 lips = (rest.xz - face[2].xz) / vec2(0.026, 0.009);
        if (rest.y < face[2].y + 0.03 && dot(lips, lips) < 1.0) albedo = colours[1];
        vec3 c = rest.x > 0.0 ? face[0] : face[1];
        vec2 brow = (rest.xz - c.xz - vec2(0.0, 0.022)) / vec2(0.024, 0.0045);
        if (rest.y < c.y + 0.02 && dot(brow, brow) < 1.0) albedo = colours[8] * 0.8;
    }
    if (style.w > 0.5) {  // folds
        vec3 p = rest * vec3(16.0, 16.0, 9.0);
        float h = noise(p);
        vec3 slope = vec3(noise(p + vec3(0.3, 0, 0)), noise(p + vec3(0, 0.3, 0)),
                          noise(p + vec3(0, 0, 0.3))) - h;
        n = normalize(n - 1.1 * slope);
        albedo *= 0.85 + 0.3 * noise(rest * 300.0) * 0.5 + 0.15 * h;
    }
    colour = finish(shade(albedo, n, world, light_position, style.z));
}
