"""A dressed person as the renderer takes it: one mesh with its materials, assembled of several."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ptri.render.people.body import BodyShape, load_body_model
from ptri.render.people.textures import Texture

# Layers as the shader numbers them.
SKIN, BOTTOM, TOP, SHOE, HAIR, EYE = range(6)
FAR = 10.0  # m, a distance that never decides; a layer as far outside is nowhere


class Part(NamedTuple):
    """A textured part of a dressed person: k <= `garments.MAX_PIECES` pieces of its own colours."""

    first: int  # face
    count: int  # faces
    texture: Texture
    cut: bool  # the texture's alpha is a cut, not ambient occlusion
    colours: np.ndarray  # (k, 2, 3) linear RGB
    tints: np.ndarray  # (k, 3, 3) applied to the texture's linear RGB
    styles: np.ndarray  # (k, 4) pattern kind, frequency (1/m), gloss, share of the flat colours


class Dressed(NamedTuple):
    """A dressed person's mesh and material.

    Q vertices and G faces: first the body, then shells of procedural clothes, then the parts.
    """

    vertices: np.ndarray  # (Q, 3) rest positions, m
    normals: np.ndarray  # (Q, 3)
    weights: np.ndarray  # (Q, D)
    faces: np.ndarray  # (G, 3) int32, the body's first
    num_closed: int  # the body's faces; those behind are seen from both sides
    layers: np.ndarray  # (Q, 4) distances: bottom, top, shoe, hair
    eyes: np.ndarray  # (Q,) 1 on the eyeballs
    colours: np.ndarray  # (6, 2, 3) linear RGB, two per layer
    styles: np.ndarray  # (6, 4) pattern kind, frequency (1/m), gloss, weave
    face: np.ndarray  # (3, 3) rest positions: left eye, right eye, mouth
    tucked: bool  # trousers over the top
    painted_brows: bool  # by the shader
    num_shaded: int  # faces of body and shells
    surface: np.ndarray  # (Q, 3) texture coordinates and piece; 0 on the body and its shells
    parts: tuple[Part, ...]


class Mesh(NamedTuple):
    """One of the meshes that a dressed person consists of: n vertices, of which some are used."""

    points: np.ndarray  # (n, 3) rest positions, m
    normals: np.ndarray  # (n, 3)
    weights: np.ndarray  # (n, D)
    faces: np.ndarray  # (k, 3)
    layers: np.ndarray | float = -FAR  # (n, 4) as in `Dressed`; by default it is in none
    eyes: np.ndarray | float = 0.0  # (n,) as in `Dressed`
    surface: np.ndarray | float = 0.0  # (n, 3) as in `Dressed`


def assemble(
    meshes: list[Mesh],
    looks: list[tuple],
    shape: BodyShape,
    colours: np.ndarray,
    styles: np.ndarray,
    tucked: bool = False,
    painted_brows: bool = True,
) -> Dressed:
    """A dressed person of meshes: the body, shells of procedural clothes, textured parts.

    Args:
        looks: of the textured parts, which are the last meshes: `Part`'s fields from texture on.
        colours, styles, tucked, painted_brows: as in `Dressed`.
    """
    rows, faces, num = [], [], 0
    for points, normals, weights, corners, layers, eyes, surface in meshes:
        used, corners = np.unique(corners, return_inverse=True)
        fixed = (np.broadcast_to(layers, (len(points), 4)), np.broadcast_to(eyes, len(points)))
        surface = np.broadcast_to(surface, points.shape)
        rows.append([value[used] for value in (points, normals, weights, *fixed, surface)])
        faces.append(num + corners.reshape(-1, 3))
        num += len(used)
    points, normals, weights, layers, eyes, surface = (
        np.concatenate(values).astype(np.float32) for values in zip(*rows)
    )
    first_face = np.cumsum([0] + [len(mesh.faces) for mesh in meshes]).tolist()
    shaded = len(meshes) - len(looks)
    parts = [
        Part(start, end - start, *look)
        for start, end, look in zip(first_face[shaded:], first_face[shaded + 1 :], looks)
    ]
    model = load_body_model()
    head = dict(zip(model.bones, shape.bone_heads))
    mouth = shape.vertices[model.nose_tip] + np.array([0, 0.02, -0.045 * shape.stature / 1.7])
    return Dressed(
        vertices=points,
        normals=normals,
        weights=weights,
        faces=np.concatenate(faces).astype(np.int32),
        num_closed=first_face[1],
        layers=layers,
        eyes=eyes,
        colours=colours,
        styles=styles,
        face=np.stack([head["eye.L"], head["eye.R"], mouth]),
        tucked=tucked,
        painted_brows=painted_brows,
        num_shaded=first_face[shaded],
        surface=surface,
        parts=tuple(parts),
    )
