#version 330
// An equirectangular panorama (or any picture, stretched) behind everything.
uniform sampler2D picture;
uniform mat3 rays;     // pixel (x, y, 1) in the range -1..1 -> world direction
uniform float turn;    // share of a whole turn
uniform vec3 tint;
uniform bool flat_picture;
uniform vec4 window;   // of a flat picture: left, top, width, height as shares
in vec2 screen;
out vec4 colour;
void main() {
    vec3 d = normalize(rays * vec3(screen, 1.0));
    vec2 uv = vec2(fract(atan(d.y, d.x) / 6.2831853 + turn), 0.5 - asin(d.z) / 3.1415927);
    if (flat_picture) uv = window.xy + window.zw * (0.5 + 0.5 * screen);
    colour = vec4(textureLod(picture, uv, 0.0).rgb * tint, 1.0);
}
