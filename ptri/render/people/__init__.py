"""Dressed people: Anny bodies in poses of `ptri.people`, in procedural clothes or garments.

Read `body` (shapes and joints), `posing` (part rotations to skin) and `poses`; then `dressed` (the
mesh that is drawn), `wardrobe` (clothes painted on the body), `garment_files`, `textures`,
`garments` and `tailor` (clothes of a folder); `person` chooses among all that. `decimate` thins
meshes.
"""
