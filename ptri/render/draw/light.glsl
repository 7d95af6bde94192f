// Shared by the fragment shaders: noise, the key light with its shadow map, ambient and fill.
uniform sampler2DShadow shadow_map;
uniform vec3 light_direction;  // towards the light
uniform vec3 light_colour;
uniform vec3 fill_direction;
uniform vec3 fill_colour;
uniform vec3 sky_colour;
uniform vec3 ground_colour;
uniform vec3 eye_position;
uniform float exposure;
uniform float shadow_strength;
uniform vec3 lamp_position;
uniform vec3 lamp_colour;      // at 1 m

uniform sampler2D noise_map;  // smooth noise (one cell per unit), turbulence, two slopes

// Noise comes from a texture: software rasterisers run every branch, so arithmetic is dear.
float noise(vec2 p) {
    return texture(noise_map, p / 32.0).r;
}
float shadow(vec4 light_position, float slope) {
    vec3 p = light_position.xyz / light_position.w * 0.5 + 0.5;
    if (p.x <= 0.0 || p.x >= 1.0 || p.y <= 0.0 || p.y >= 1.0) return 1.0;
    return 1.0 - shadow_strength * (1.0 - texture(shadow_map, vec3(p.xy, p.z - 0.0015 - 0.003 * slope)));
}
vec3 shade(vec3 albedo, vec3 n, vec3 world, vec4 light_position, float gloss) {
    float facing = dot(n, light_direction);
    float lit = facing > 0.0 ? shadow(light_position, 1.0 - facing) : 0.0;
    vec3 to_eye = normalize(eye_position - world);
    vec3 half_way = normalize(light_direction + to_eye);
    vec3 light = mix(ground_colour, sky_colour, 0.5 + 0.5 * n.z)
        + light_colour * max(facing, 0.0) * lit
        + fill_colour * max(dot(n, fill_direction), 0.0);
    vec3 to_lamp = lamp_position - world;
    float square = dot(to_lamp, to_lamp) + 0.1;
    light += lamp_colour * max(dot(n, to_lamp), 0.0) / (square * sqrt(square));
    float spark = max(dot(n, half_way), 0.0);
    for (int i = 0; i < 5; i++) spark *= spark;  // to the power of 32
    spark *= gloss * lit;
    return albedo * light + spark * light_colour;
}
// A surface lit by vertex (light.vert.glsl), for its outer side. What is seen of the inner side of
// cloth lies in its own shade.
vec3 lit(vec3 albedo, vec4 light, vec4 in_shadow, float gloss) {
    vec3 key = light_colour * (1.0 - shadow_strength * (1.0 - texture(shadow_map, in_shadow.xyz)));
    return albedo * (light.rgb + key * in_shadow.w) + gloss * light.a * key;
}
vec4 finish(vec3 colour) {
    colour = colour * exposure;
    colour = colour / (1.0 + 0.35 * colour);
    vec3 root = sqrt(clamp(colour, 0.0, 1.0));
    return vec4(root * (1.138 - 0.138 * root), 1.0);  // within 0.011 of the power 1 / 2.2
}
