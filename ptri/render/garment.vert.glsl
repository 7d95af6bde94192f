#version 330
// A textured garment; positions and normals arrive skinned, in metres, world frame (z up).
uniform mat4 view_projection;
uniform mat4 light_matrix;
in vec3 position;
in vec3 normal;
in vec3 pattern;
in vec3 surface;  // texture coordinates, piece
out vec3 world;
out vec3 world_normal;
out vec3 rest;
out vec2 uv;
flat out int piece;
out vec4 light_position;
void main() {
    world = position;
    world_normal = normal;
    rest = pattern;
    uv = surface.xy;
    piece = int(surface.z + 0.5);
    light_position = light_matrix * vec4(position, 1.0);
    gl_Position = view_projection * vec4(position, 1.0);
}
