#version 330
//#define CUT
//#include light.glsl
//#include pattern.glsl
uniform sampler2D cloth;   // sRGB; alpha: ambient occlusion, or where hair is (CUT)
uniform vec3 colours[12];  // two per piece
uniform mat3 tints[6];     // what becomes of the texture's linear colour
uniform vec4 styles[6];    // pattern kind, frequency, gloss, share of the flat colours
in vec3 world;
in vec3 world_normal;
in vec3 rest;
in vec2 uv;
flat in int piece;
in vec4 light_position;
out vec4 colour;

void main() {
    vec4 texel = texture(cloth, uv);
#ifdef CUT
    if (texel.a < 0.4) discard;
    texel.a = 1.0;
#endif
    vec4 style = styles[piece];
    vec3 n = normalize(world_normal);
    if (dot(n, eye_position - world) < 0.0) n = -n;  // cloth has two sides
    vec2 around = vec2(rest.x + rest.y, rest.z);
    vec4 cloud = texture(noise_map, around * style.y * 0.5 / 32.0);
    float share = mixing(int(style.x + 0.5), rest * style.y, cloud);
    vec3 flat_colour = mix(colours[2 * piece], colours[2 * piece + 1], share) * texel.a;
    vec3 albedo = mix(tints[piece] * (texel.rgb * texel.rgb), flat_colour, style.w);
#ifndef CUT
    vec4 folds = texture(noise_map, around * vec2(14.0, 8.0) / 32.0);
    n = normalize(n + 0.25 * vec3(folds.b, folds.b, folds.a));
#endif
    colour = finish(shade(albedo, n, world, light_position, style.z));
}
