// Shared by the vertex shaders of people: the light of a vertex, but for the shadow.
uniform mat4 view_projection;
uniform mat4 light_matrix;
uniform float fold;  // strength of folds
uniform vec3 light_direction;  // towards the light
uniform vec3 fill_direction;
uniform vec3 fill_colour;
uniform vec3 sky_colour;
uniform vec3 ground_colour;
uniform vec3 eye_position;
uniform vec3 lamp_position;
uniform vec3 lamp_colour;      // at 1 m
uniform sampler2D noise_map;

// A normal bent by folds of cloth.
vec3 folded(vec3 n, vec3 rest, float strength) {
    vec2 around = vec2(rest.x + rest.y, rest.z) * vec2(14.0, 8.0) / 32.0;
    vec4 folds = textureLod(noise_map, around, 0.0);
    return normalize(n + strength * vec3(folds.b, folds.b, folds.a));
}
void light_vertex(vec3 world, vec3 n, out vec4 light, out vec4 in_shadow) {
    float facing = dot(n, light_direction);
    vec3 half_way = normalize(light_direction + normalize(eye_position - world));
    light.rgb = mix(ground_colour, sky_colour, 0.5 + 0.5 * n.z)
        + fill_colour * max(dot(n, fill_direction), 0.0);
    vec3 to_lamp = lamp_position - world;
    float square = dot(to_lamp, to_lamp) + 0.1;
    light.rgb += lamp_colour * max(dot(n, to_lamp), 0.0) / (square * sqrt(square));
    light.a = max(dot(n, half_way), 0.0);
    for (int i = 0; i < 5; i++) light.a *= light.a;  // to the power of 32
    vec4 place = light_matrix * vec4(world, 1.0);
    in_shadow = vec4(place.xyz * 0.5 + 0.5, max(facing, 0.0));
    in_shadow.z -= 0.0015 + 0.003 * (1.0 - facing);
}
