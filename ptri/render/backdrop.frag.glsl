#version 330
// An equirectangular panorama (or any picture, stretched) behind everything.
uniform sampler2D picture;
uniform mat3 rays;     // pixel (x, y, 1) in the range -1..1 -> world direction
uniform float turn;    // share of a whole turn
uniform float brightness;
uniform bool flat_picture;
in vec2 screen;
out vec4 colour;
void main() {
    vec3 d = normalize(rays * vec3(screen, 1.0));
    vec2 uv = vec2(fract(atan(d.y, d.x) / 6.2831853 + turn), 0.5 - asin(d.z) / 3.1415927);
    if (flat_picture) uv = vec2(0.5 + 0.5 * screen.x, 0.5 - 0.5 * screen.y);
    colour = vec4(textureLod(picture, uv, 0.0).rgb * brightness, 1.0);
}
