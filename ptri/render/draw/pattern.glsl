// Shared by the fragment shaders of people: how much of a cloth's second colour is at q.
float mixing(int kind, vec3 q, vec4 cloud) {
    if (kind == 0) return 0.15 * cloud.r;
    if (kind == 4) return smoothstep(0.45, 0.55, cloud.r);
    if (kind == 5) return step(length(fract(q.xz) - 0.5), 0.28);
    float across = step(0.0, sin(q.x * 3.1416)), along = step(0.0, sin(q.z * 3.1416));
    return kind == 1 ? along : kind == 2 ? across : 0.5 * (across + along);
}
