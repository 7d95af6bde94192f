"""Chooses garments from a folder for a person, recolours and fits them.

Garments are few, so the upper part of one outfit is often worn with the lower part of another, and
every piece is recoloured: its texture as it is, turned in hue, reduced to folds on a new colour, or
replaced by a pattern of flat colours times ambient occlusion. What suits whom is read from file
names: ``female_*`` outfits are for women, ``short*`` and ``afro*`` hair for everybody, other hair
for women and a few men. All random choices come from one generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ptri.data.augmentation import hue_rotation
from ptri.render.people.body import BodyShape, base_vertices, load_base_mesh, load_body_model
from ptri.render.people.decimate import vertex_normals
from ptri.render.people.dressed import BOTTOM, FAR, HAIR, SHOE, TOP, Dressed, Mesh, assemble
from ptri.render.people.garment_files import NUM_BASE, GarmentFolder, read_eye_map
from ptri.render.people.garments import LOWER, UPPER, Garment, fit, layer_masks, load_garment
from ptri.render.people.posing import body_weights
from ptri.render.people.textures import read_eye
from ptri.render.people.wardrobe import body_faces, bone_share, hair_region, sample_colours

_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
_BROWN = np.array([[0, 0, 1], [0, 0.75, 0], [0.55, 0, 0]]) * 0.75  # blue becomes red
_DARK = 0.03  # linear luminance
_SCALP_LINE = -0.035  # m, hair line of the painted scalp: a little within that of the meshes
_BIB = 0.25  # m above the hips: lower pieces that reach so high keep their own upper pieces


def dress_in_garments(
    shape: BodyShape, rng: np.random.Generator, folder: GarmentFolder, num_faces: int = 9000
) -> Dressed:
    """Dresses a body in garments of a folder; bare skin is drawn from about `num_faces` triangles.

    Raises:
        UserError: a damaged garment file or picture.
    """
    colours, styles = sample_colours(rng)
    base, rest = load_base_mesh(), base_vertices(shape)
    worn = choose(folder, shape, rest, rng)
    coarse = body_faces(num_faces)
    bare, masks = layer_masks(coarse, base.body, worn)
    normals = vertex_normals(shape.vertices.astype(float), load_body_model().faces)
    eye_uv = np.full((NUM_BASE, 2), np.nan)  # nan: no eyeball
    if folder.eyes:
        vertices, around = read_eye_map(folder.folder)
        eye_uv[vertices] = around
    eye_uv = eye_uv[base.body]
    bare &= ~np.isfinite(eye_uv).all(1)[coarse].all(1)
    layers = np.full((len(normals), 4), -FAR)
    if any(garment.category == "hair" for garment, _ in worn):
        # Hair is strips and thin shells: paint the scalp below.
        layers[:, 3] = hair_region(shape, _SCALP_LINE)
    skin, eyeballs = (shape.vertices, normals, body_weights()), bone_share("eye") > 0.5
    meshes, looks = [Mesh(*skin, coarse[bare], layers, eyeballs)], []
    for (garment, _), mask in zip(worn, masks):
        meshes.append(_mesh(garment, mask, rest))
        looks.append((garment.texture, garment.category in ("hair", "eyebrows")))
        looks[-1] += _recolour(garment, colours, styles, rng)
    if folder.eyes:
        faces = load_body_model().faces
        surface = np.column_stack([eye_uv, np.zeros(len(eye_uv))])
        with_uv = faces[np.isfinite(eye_uv[faces]).all((1, 2))]
        meshes.append(Mesh(*skin, with_uv, surface=surface))
        picture = read_eye(folder.eyes[rng.integers(len(folder.eyes))])
        # Most eyes are brown; the pictures are mostly blue.
        turn = _BROWN if rng.random() < 0.75 else np.eye(3)
        look = np.zeros((1, 2, 3)), turn[None], np.array([[0, 10, 0.5, 0]])
        looks.append((picture, False, *look))
    brows = any(garment.category == "eyebrows" for garment, _ in worn)
    return assemble(meshes, looks, shape, colours, styles, painted_brows=not brows)


def choose(
    folder: GarmentFolder, shape: BodyShape, rest: np.ndarray, rng: np.random.Generator
) -> list[tuple[Garment, tuple[int, ...]]]:
    """Draws what a person wears: garments and the classes of their pieces."""
    woman = shape.gender > 0.5

    def draw(paths: Sequence[Path], weights: list[float] | None = None) -> Garment:
        share = None if weights is None else np.array(weights) / np.sum(weights)
        return load_garment(paths[rng.choice(len(paths), p=share)])

    outfits = [p for p in folder.paths["outfits"] if woman or not p.stem.startswith("female")]
    outfits = outfits or folder.paths["outfits"]
    weights = [2.5 if p.stem.startswith("female") else 1.0 for p in outfits]
    lower, upper = draw(outfits, weights), draw(outfits, weights)
    both = (LOWER, UPPER)
    complete = [set(both) <= set(garment.piece_class) for garment in (lower, upper)]
    mixed = rng.random() < 0.6 and all(complete) and lower is not upper
    if mixed:
        kind = lower.piece_class[lower.pieces]
        top = fit(lower, rest)[lower.corners[kind == LOWER], 2].max()
        mixed = top < shape.joints[6, 2] + _BIB
    worn = [(lower, (LOWER,)), (upper, (UPPER,))] if mixed else [(upper, both)]
    if folder.paths["shoes"] and rng.random() < 0.94:
        worn.append((draw(folder.paths["shoes"]), both))
    short = [p for p in folder.paths["hair"] if p.stem.startswith(("short", "afro"))]
    hat = bool(folder.paths["hats"]) and rng.random() < (0.06 if woman else 0.12)
    hairs = folder.paths["hair"]
    if hat:
        worn.append((draw(folder.paths["hats"]), both))
        hairs = [p for p in short if p.stem == "short04"]  # the one that fits below hats
    weights = [(0.25 if woman else 1.0) if p in short else (1.0 if woman else 0.04) for p in hairs]
    if hairs and rng.random() < (0.99 if woman else 0.88):
        worn.append((draw(hairs, weights), both))
    if folder.paths["eyebrows"]:
        worn.append((draw(folder.paths["eyebrows"]), both))
    return worn


def _mesh(garment: Garment, mask: np.ndarray, rest: np.ndarray) -> Mesh:
    """The drawn faces of a fitted garment."""
    fitted = fit(garment, rest)
    normals = vertex_normals(fitted, garment.faces)
    if garment.category == "eyebrows":
        fitted = fitted + np.array([0, -0.0015, 0])  # the thinned face must not cover them
    elif garment.category == "hats":
        fitted = fitted + 0.004 * normals  # nor must the hair
    skin = fitted[garment.corners], normals[garment.corners], garment.drivers
    surface = np.column_stack([garment.uv, garment.pieces])
    return Mesh(*skin, garment.drawn[mask], surface=surface)


def _recolour(
    garment: Garment, colours: np.ndarray, styles: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours (k, 2, 3), tints (k, 3, 3) and styles (k, 4) of a garment's pieces."""
    num = len(garment.piece_class)
    pairs, tints = np.zeros((num, 2, 3)), np.tile(np.eye(3), (num, 1, 1))
    looks, flat = np.zeros((num, 4)), float(not garment.has_diffuse)
    if garment.category in ("hair", "eyebrows"):
        brows = garment.category == "eyebrows"
        hair = colours[HAIR, 0] * (0.6 if brows else 1.0)
        pairs[:, 0], pairs[:, 1] = hair, 0.8 * hair
        looks[:] = (0, 10, 0, 1) if brows else (4, 60, 0.2, flat)
        for k, tone in enumerate(garment.piece_tone):
            tints[k] = _tint(hair, tone)
            if tone @ _LUMINANCE < _DARK and looks[k, 3] == 0:
                looks[k] = 0, 60, 0.2, 0.5  # else highlights of a black picture become stripes
        return pairs, tints, looks
    untouched = rng.random() < 0.12
    for k in range(num):
        layer = SHOE
        if garment.category == "outfits":
            layer = TOP if garment.piece_class[k] == UPPER else BOTTOM
        again = any(garment.piece_class[:k] == garment.piece_class[k])
        # Again one of a class, as a shirt below a jacket, or laces: in other colours.
        shades, manners = sample_colours(rng) if again else (colours, styles)
        pair, style = shades[layer], manners[layer]
        pairs[k], looks[k] = pair, (*style[:3], flat)
        if not garment.has_diffuse or untouched:
            continue
        mode = rng.random()
        tints[k] = _turned(rng) if mode < 0.3 else _tint(pair[0], garment.piece_tone[k])
        if mode >= 0.6:
            looks[k, 3] = 0.85  # a little of the texture's folds and seams stays
    return pairs, tints, looks


def _tint(colour: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """(3, 3): a texture's brightness, relative to its mean linear RGB, times a colour."""
    # 0.02: the noise of nearly black textures must not become the pattern.
    return np.outer(colour, _LUMINANCE) / max(float(_LUMINANCE @ tone), 0.02)


def _turned(rng: np.random.Generator) -> np.ndarray:
    """(3, 3): a turn of the hue, another saturation and brightness."""
    turn = hue_rotation(rng.uniform(0, 2 * np.pi))
    saturation, value = rng.uniform(0.2, 1.2), rng.uniform(0.5, 2.0)
    grey = np.tile(_LUMINANCE, (3, 1))
    return value * (saturation * np.eye(3) + (1 - saturation) * grey) @ turn


def recolour(dressed: Dressed, rng: np.random.Generator) -> Dressed:
    """The same clothes in other colours, on somebody with another skin and hair."""
    colours, styles = sample_colours(rng)
    # 0.005: hair is never black.
    hair = np.diag(colours[HAIR, 0] / np.maximum(dressed.colours[HAIR, 0], 0.005))
    parts = []
    for part in dressed.parts:
        if part.colours.any():  # all but eyes
            turn = hair if part.cut else _turned(rng)
            turned = np.clip(part.colours @ turn.T, 0, 1)
            part = part._replace(colours=turned, tints=turn @ part.tints)
        parts.append(part)
    return dressed._replace(colours=colours, styles=styles, parts=tuple(parts))
