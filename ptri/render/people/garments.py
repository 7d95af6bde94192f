"""Garments of a folder, prepared for and fitted to Anny bodies.

A garment vertex is bound to three vertices of MakeHuman's base mesh "hm08":
``vertex = sum_k weight_k rest[ref_k] + scale * offset``, where the scale of each MakeHuman axis
(x to the person's left, y up, z to the front) is the distance of two base vertices along it over
the distance stored with the garment (the .mhclo format of MakeHuman).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import maximum, minimum
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ptri.errors import UserError
from ptri.render.people.body import load_base_mesh, load_body_model
from ptri.render.people.decimate import decimate, find_border, vertex_normals
from ptri.render.people.garment_files import NUM_BASE, read_arrays
from ptri.render.people.posing import driver_weights
from ptri.render.people.textures import Texture, read_texture, sample_texels

LOWER, UPPER = 0, 1  # classes of pieces
MAX_PIECES = 6
_NUM_SKIN = 13380  # its first vertices are the skin
_NUM_FACES = {"outfits": 2200, "shoes": 800, "hair": 1200, "hats": 1300, "eyebrows": 192}
_NUM_CLOTHED = 18002  # base vertices before the skirt helper: skin and tights helper
_CLOSE, _FROM_BORDER = 0.06, 0.03  # m, of hidden skin from the cloth and its borders
_WHOLE_BODY = 1.15  # m, height of clothes sewn together that dress legs and trunk


class Garment(NamedTuple):
    """One garment, ready to be fitted. n vertices, m corners (vertices split at texture seams)."""

    category: str
    ref: np.ndarray  # (n, 3) base vertices
    weight: np.ndarray  # (n, 3)
    offset: np.ndarray  # (n, 3) m, MakeHuman axes
    scale_verts: np.ndarray  # (3, 2) base vertices
    scale_den: np.ndarray  # (3,)
    faces: np.ndarray  # (t, 3) of the vertices
    corners: np.ndarray  # (m,) vertex of each corner
    uv: np.ndarray  # (m, 2)
    drawn: np.ndarray  # (g, 3) thinned faces of the corners
    drivers: np.ndarray  # (m, D) skinning weights
    pieces: np.ndarray  # (m,) piece of each corner
    piece_class: np.ndarray  # (k,) LOWER or UPPER
    piece_tone: np.ndarray  # (k, 3) mean linear RGB of the texture
    hides: np.ndarray  # (2, N) bool, base vertices hidden by the lower and the upper pieces
    depth: int  # larger is further out
    texture: Texture
    has_diffuse: bool


def fit(garment: Garment, rest: np.ndarray) -> np.ndarray:
    """Garment vertices (n, 3) m on a body at rest.

    Args:
        rest: (N, 3) m, base-mesh vertices in Anny's axes (x left, y back, z up).
    """
    points = np.einsum("nk,nkx->nx", garment.weight, rest[garment.ref])
    ends = rest[garment.scale_verts]  # (3, 2, 3)
    length = np.abs(ends[:, 0] - ends[:, 1])[[0, 1, 2], [0, 2, 1]]  # along MakeHuman's x, y, z
    x, y, z = (garment.offset * (length / garment.scale_den)).T
    return points + np.stack([x, -z, y], 1)


@functools.cache
def load_garment(path: Path) -> Garment:
    """Reads a garment and prepares it for the body model: thinned faces, weights, pieces, texture.

    Raises:
        UserError: a damaged file or picture.
    """
    arrays, category = read_arrays(path), path.parent.name
    faces = arrays["faces"]
    pairs, inverse = np.unique(
        np.stack([faces.ravel(), arrays["face_uv"].ravel()], 1), axis=0, return_inverse=True
    )
    corners, split = pairs[:, 0], inverse.reshape(-1, 3)
    uv = arrays["uv"][pairs[:, 1]]
    limit = _NUM_FACES.get(category, 2000)
    if category == "hair":
        # Borders stay, so that the rest of a mesh with many strips would vanish: only half of it.
        limit = max(limit, len(split) - int((~find_border(split, len(corners))).sum()))
    drawn = split
    if len(split) > limit:
        drawn = decimate(arrays["vertices"][corners], split, limit)
    texture, has_diffuse = read_texture(path, category, uv, split)
    garment = Garment(
        category=category,
        ref=arrays["ref"],
        weight=arrays["weight"].astype(float),
        offset=arrays["offset"].astype(float),
        scale_verts=arrays["scale_verts"],
        scale_den=arrays["scale_den"].astype(float),
        faces=faces,
        corners=corners,
        uv=uv.astype(np.float32),
        drawn=np.asarray(drawn, np.int64),
        drivers=driver_weights(_bone_weights(path, arrays))[corners],
        pieces=np.zeros(len(corners), np.int64),
        piece_class=np.full(1, UPPER),
        piece_tone=np.ones((1, 3)),
        hides=np.zeros((2, NUM_BASE), bool),
        depth=int(arrays["z_depth"]) if "z_depth" in arrays else 50,
        texture=texture,
        has_diffuse=has_diffuse,
    )
    return _with_pieces(garment, split, arrays["delete_verts"])


def layer_masks(
    body_faces: np.ndarray, body_to_base: np.ndarray, worn: list[tuple[Garment, tuple[int, ...]]]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Which faces are not hidden below clothes.

    From the outermost garment inwards, the base vertices that a garment hides vanish from all that
    lies below: a garment vertex with two of its three references, a face with all its vertices.

    Args:
        body_faces: (F, 3) of body vertices; body_to_base: (P,) their base vertices.
        worn: garments and the classes of their pieces that are worn.

    Returns:
        (F,) bool of the body's faces; (g,) bool of each garment's drawn faces (worn classes only).
    """
    gone = np.zeros(NUM_BASE, bool)
    masks = [np.zeros(0, bool)] * len(worn)
    order = sorted(range(len(worn)), key=lambda i: -worn[i][0].depth)
    for i in order:
        garment, classes = worn[i]
        hidden = (gone[garment.ref].sum(1) >= 2)[garment.corners]
        shown = np.isin(garment.piece_class, classes)[garment.pieces]
        masks[i] = ~hidden[garment.drawn].all(1) & shown[garment.drawn].all(1)
        for kind in classes:
            gone = gone | garment.hides[kind]
    gone[_NUM_SKIN:] = False  # some lists name eyes and tongue
    return ~gone[body_to_base[body_faces]].all(1), masks


def _bone_weights(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """(n, B): a shoe's own weights; else those of the references, blended by the binding."""
    if "bone_names" in arrays:
        model = load_body_model()
        names = [str(name) for name in arrays["bone_names"]]
        unknown = [name for name in names if name not in model.bones]
        if unknown or arrays["bone_index"].max() >= len(names):
            raise UserError(f"{path}: damaged garment file: bones {unknown} are not Anny's")
        columns = np.array([model.bones.index(name) for name in names])
        weights = np.zeros((len(arrays["ref"]), len(model.bones)))
        rows = np.arange(len(weights))[:, None]
        np.add.at(weights, (rows, columns[arrays["bone_index"]]), arrays["bone_weight"])
    else:
        share = np.maximum(arrays["weight"], 0)  # negative shares would turn bones inside out
        weights = np.einsum("nk,nkb->nb", share, load_base_mesh().weights[arrays["ref"]])
    return weights / weights.sum(1, keepdims=True)


def _with_pieces(garment: Garment, split: np.ndarray, delete: np.ndarray) -> Garment:
    """Finds the pieces (islands of the texture, by height and colour) and what each class hides."""
    base, corners = load_base_mesh(), garment.corners
    points = fit(garment, base.template)
    size = len(corners)
    island, sewn = _connected(split, size), _connected(garment.faces, len(points))[corners]
    count = np.bincount(island)
    hip = float(base.anny.template_bone_heads[base.anny.bone_labels.index("upperleg01.L"), 2])
    height = points[corners, 2]
    lowest, highest = (of(height, sewn, range(sewn.max() + 1)) for of in (minimum, maximum))
    # What is sewn together is one garment (with its pockets), unless it dresses the whole body.
    lows, highs = (of(height, island, range(len(count))) for of in (minimum, maximum))
    first = np.unique(island, return_index=True)[1]
    full_body = (highest - lowest)[sewn[first]] > _WHOLE_BODY
    middle = np.where(full_body, lows + highs, (lowest + highest)[sewn[first]]) / 2
    kind = np.where(middle > hip + 0.1, UPPER, LOWER)
    if garment.category != "outfits":
        kind[:] = UPPER
    texel = sample_texels(garment.texture.pixels, garment.uv).astype(float)
    tone = np.stack([np.bincount(island, texel[:, c]) / count for c in range(3)], 1)
    piece_of, classes, tones = np.zeros(len(count), np.int64), [], []
    for i in np.argsort(-count, kind="stable"):
        near = [
            (np.abs(tones[k] - tone[i]).max(), k)
            for k in range(len(tones))
            if classes[k] == kind[i]
        ]
        full = len(tones) == MAX_PIECES or count[i] < 0.02 * size
        if near and (min(near)[0] < 28 or full):
            piece_of[i] = min(near)[1]
        elif len(tones) < MAX_PIECES:
            piece_of[i] = len(tones)
            classes.append(kind[i])
            tones.append(tone[i])
        else:
            kind[i], piece_of[i] = classes[0], 0
    pieces = piece_of[island]
    texel = (texel[:, :3] / 255) ** 2.2
    count = np.maximum(np.bincount(pieces, minlength=len(classes)), 1)
    mean = [np.bincount(pieces, texel[:, c], minlength=len(classes)) / count for c in range(3)]
    classes = np.array(classes)
    hides = _hidden(garment, points, classes[pieces], delete)
    return garment._replace(
        pieces=pieces, piece_class=classes, piece_tone=np.stack(mean, 1), hides=hides
    )


def _hidden(
    garment: Garment, points: np.ndarray, kind: np.ndarray, delete: np.ndarray
) -> np.ndarray:
    """Base vertices (2, N) bool below the lower and the upper pieces.

    Args:
        points: (n, 3) fitted to the template; kind: (m,) class of each corner.
        delete: the garment's own list.
    """
    template = load_base_mesh().template
    if garment.category == "outfits":
        # The lists leave out 20 cm of calf, which comes through bent trousers. Add what lies
        # close below the cloth and not close to a border (cuffs, collars).
        close = np.arange(_NUM_CLOTHED)
        place = template[close]
        outward = vertex_normals(points, garment.faces)
        border = points[find_border(garment.faces, len(points))]
        distance, nearest = cKDTree(points).query(place)
        below = np.einsum("vx,vx->v", points[nearest] - place, outward[nearest]) > 0
        below &= distance < _CLOSE
        if len(border):
            below &= cKDTree(border).query(place)[0] > _FROM_BORDER
        delete = np.union1d(delete, close[below])
    hides = np.zeros((2, NUM_BASE), bool)
    distance = np.full((2, len(delete)), np.inf)
    for k in (LOWER, UPPER):
        vertices = garment.corners[kind == k]
        if len(vertices) and len(delete):
            distance[k] = cKDTree(points[vertices]).query(template[delete])[0]
    for k in (LOWER, UPPER):  # where both are near, both hide
        hides[k, delete[distance[k] < distance[1 - k] + 0.015]] = True
    return hides


def _connected(faces: np.ndarray, size: int) -> np.ndarray:
    """Number (size,) of the connected part that each vertex belongs to."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), (size, size))
    return connected_components(graph, directed=False)[1]
