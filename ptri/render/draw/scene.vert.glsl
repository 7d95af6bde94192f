#version 330
// Room and furniture.
uniform mat4 view_projection;
uniform mat4 light_matrix;
in vec3 position;
in vec3 normal;
in vec2 uv;
in float material;
out vec3 world;
out vec3 world_normal;
out vec2 surface;
flat out int kind;
out vec4 light_position;
void main() {
    world = position;
    world_normal = normal;
    surface = uv;
    kind = int(material + 0.5);
    light_position = light_matrix * vec4(position, 1.0);
    gl_Position = view_projection * vec4(position, 1.0);
}
