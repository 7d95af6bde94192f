#version 330
// A dressed person, lit by vertex: its triangles are about two pixels wide, where a software
// rasteriser shades each pixel several times. Positions and normals arrive skinned, in metres,
// world frame (z up).
//#include light.vert.glsl
in vec3 position;
in vec3 normal;
in vec3 pattern;
in vec4 layers;
in float eye;
out vec4 rest;       // rest position, 1 on the eyeballs
out vec4 layer;
out vec4 light;      // ambient and fill light; highlight
out vec4 in_shadow;  // place in the shadow map; share of the key light if it is not in shadow
void main() {
    rest = vec4(pattern, eye);
    layer = layers;
    vec3 n = normalize(normal);
    if (max(max(layers.x, layers.y), layers.z) > 0.0) n = folded(n, pattern, 0.35);
    light_vertex(position, n, light, in_shadow);
    gl_Position = view_projection * vec4(position, 1.0);
}
