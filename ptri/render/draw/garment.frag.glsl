#version 330
//#define CUT
//#include light.glsl
//#include pattern.glsl
uniform sampler2D cloth;   // sRGB; alpha: ambient occlusion, or where hair is (CUT)
uniform vec3 colours[12];  // two per piece
uniform mat3 tints[6];     // what becomes of the texture's linear colour
uniform vec4 styles[6];    // pattern kind, frequency, gloss, share of the flat colours
in vec4 rest;
in vec2 uv;
in vec4 light;
in vec4 in_shadow;
out vec4 colour;

void main() {
    vec4 texel = texture(cloth, uv);
#ifdef CUT
    if (texel.a < 0.4) discard;
    texel.a = 1.0;
#endif
    int piece = int(rest.w + 0.5);
    vec4 style = styles[piece];
    vec2 around = vec2(rest.x + rest.y, rest.z);
    vec4 cloud = texture(noise_map, around * style.y * 0.5 / 32.0);
    float share = mixing(int(style.x + 0.5), rest.xyz * style.y, cloud);
    vec3 flat_colour = mix(colours[2 * piece], colours[2 * piece + 1], share) * texel.a;
    vec3 albedo = mix(tints[piece] * (texel.rgb * texel.rgb), flat_colour, style.w);
#ifndef CUT
    if (!gl_FrontFacing) albedo *= 0.5;  // inside of a sleeve or a collar
#endif
    colour = finish(lit(max(albedo, 0.0), light, in_shadow, style.z));
}
