#version 330
//#include light.glsl
//#include pattern.glsl
uniform vec3 colours[12];  // two per layer: skin, bottom, top, shoe, hair, eye
uniform vec4 styles[6];    // pattern kind, frequency, gloss, wrinkles
uniform vec3 face[3];      // rest positions of left eye, right eye, mouth
uniform bool tucked;
uniform bool painted_brows;
in vec4 rest;
in vec4 layer;
in vec4 light;
in vec4 in_shadow;
out vec4 colour;

void main() {
    int kind = 0;
    bool bottom_first = tucked && layer.x > 0.0;
    if (rest.w > 0.5) kind = 5;
    else if (layer.w > 0.0) kind = 4;
    else if (layer.y > 0.0 && !bottom_first) kind = 2;
    else if (layer.z > 0.0) kind = 3;
    else if (layer.x > 0.0) kind = 1;
    else if (layer.y > 0.0) kind = 2;
    vec4 style = styles[kind];
    // One look-up: hair is streaked along z, skin mottled, cloth patterned.
    vec2 around = kind == 4 ? vec2(rest.x - rest.y, rest.z) * vec2(90.0, 12.0)
        : vec2(rest.x + rest.y, rest.z) * style.y * 0.5;
    vec4 cloud = texture(noise_map, around / 32.0);
    float share = mixing(int(style.x + 0.5), rest.xyz * style.y, cloud);
    if (kind == 4) share = cloud.r;
    vec3 c = rest.x > 0.0 ? face[0] : face[1];
    if (kind == 5) share = distance(rest.xz, c.xz) < 0.0065 ? 1.0 : 0.0;
    vec3 albedo = mix(colours[2 * kind], colours[2 * kind + 1], share);
    if (kind == 0) {
        albedo = colours[0] * (0.92 + 0.16 * cloud.r);
        vec2 lips = (rest.xz - face[2].xz) / vec2(0.026, 0.009);
        if (rest.y < face[2].y + 0.03 && dot(lips, lips) < 1.0) albedo = colours[1];
        vec2 brow = (rest.xz - c.xz - vec2(0.0, 0.022)) / vec2(0.024, 0.0045);
        if (painted_brows && rest.y < c.y + 0.02 && dot(brow, brow) < 1.0)
            albedo = colours[8] * 0.8;
    }
    if (style.w > 0.5) albedo *= 0.9 + 0.2 * cloud.g;
    colour = finish(lit(albedo, light, in_shadow, style.z));
}
