#version 330
// A textured garment, lit by vertex as the person is.
//#include light.vert.glsl
in vec3 position;
in vec3 normal;
in vec3 pattern;
in vec3 surface;  // texture coordinates, piece
out vec4 rest;    // rest position, piece
out vec2 uv;
out vec4 light;
out vec4 in_shadow;
void main() {
    rest = vec4(pattern, surface.z);
    uv = surface.xy;
    vec3 n = folded(normalize(normal), pattern, fold);
    light_vertex(position, n, light, in_shadow);
    gl_Position = view_projection * vec4(position, 1.0);
}
