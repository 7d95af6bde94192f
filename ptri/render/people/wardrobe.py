"""Clothes, hair and shoes as regions of the body's own surface.

Every garment is a signed distance (m, positive inside) per vertex of the rest mesh; the fragment
shader cuts it at zero, so that hems are crisp, and the vertices inside are pushed out along their
normals. Skirts and long hair are shells of their own. All random choices come from one generator.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ptri.render.people.body import BodyShape, load_body_model
from ptri.render.people.decimate import decimate, vertex_normals
from ptri.render.people.dressed import BOTTOM, EYE, HAIR, SHOE, SKIN, TOP, Dressed, Mesh, assemble
from ptri.render.people.posing import body_weights, driver_names

_SKIN_TONES = np.array(
    [[243, 208, 182], [224, 178, 146], [198, 146, 110], [150, 102, 72], [104, 68, 48], [70, 45, 34]]
)
_HAIR_TONES = np.array(
    [[22, 18, 16], [48, 32, 22], [92, 60, 36], [150, 110, 62], [196, 164, 104], [140, 140, 142]]
)
# Upper ends of the shares of pattern kinds.
_TOP_PATTERNS = np.cumsum([0.45, 0.12, 0.1, 0.1, 0.13, 0.1])
_PATTERNS = np.cumsum([0.7, 0.04, 0.06, 0.05, 0.1, 0.05])
_TIGHT = {"sleeve": 0.12, "hem": 0.07, "collar": -0.05, "leg": 0.4, "skirt": 0.0, "shoe": 0.0}
_TIGHT |= {"top_offset": 0.002, "bottom_offset": 0.002, "tucked": False, "long_hair": 0.0}
_FAR = 10.0  # m, a distance that never decides
_NUM_AROUND = 40  # vertices around a skirt or a fall of hair


class Outfit(NamedTuple):
    """What a person wears; along a limb, 1 is the elbow or knee and 2 the wrist or ankle."""

    sleeve: float
    hem: float  # m above the hip joints (negative: below)
    collar: float  # m of the neckline above the base of the neck
    leg: float  # end of the trousers
    skirt: float  # length of the skirt as `leg`, 0 for trousers
    shoe: float  # m above the ankle
    top_offset: float  # m away from the skin
    bottom_offset: float
    tucked: bool
    hair: float  # m of thickness, 0: bald
    hair_line: float  # m, larger = further down the neck and face
    long_hair: float  # m below the base of the skull, 0: none


def sample_outfit(gender: float, rng: np.random.Generator) -> Outfit:
    """Draws what a person wears; gender 0 man, 1 woman."""
    woman = gender > 0.5
    return Outfit(
        sleeve=float(rng.choice([0.12, 0.5, 0.7, 1.0, 1.5, 1.95, 1.95])) + rng.normal(0, 0.05),
        hem=float(rng.choice([0.0, -0.06, 0.07, -0.14, -0.25], p=[0.3, 0.3, 0.2, 0.15, 0.05])),
        collar=rng.uniform(-0.07, 0.03),
        leg=float(rng.choice([0.45, 0.8, 1.3, 1.92, 1.92, 1.97])) + rng.normal(0, 0.04),
        skirt=rng.uniform(0.6, 1.7) if rng.random() < (0.35 if woman else 0.0) else 0.0,
        shoe=rng.choice([0.0, 0.02, 0.12]),
        top_offset=rng.choice([0.004, 0.01, 0.018, 0.028]),
        bottom_offset=rng.choice([0.004, 0.008, 0.015, 0.022]),
        tucked=bool(rng.random() < 0.3),
        hair=0.0 if rng.random() < (0.02 if woman else 0.15) else rng.uniform(0.006, 0.035),
        hair_line=rng.uniform(-0.01, 0.05) if woman else rng.uniform(-0.02, 0.03),
        long_hair=rng.uniform(0.08, 0.3) if rng.random() < (0.55 if woman else 0.05) else 0.0,
    )


def sample_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws colours (6, 2, 3, linear RGB) and pattern styles (6, 4) of the layers."""
    colours = np.zeros((6, 2, 3))
    for layer in (BOTTOM, TOP, SHOE):
        base = _cloth_colour(rng)
        fresh = rng.random() < 0.6
        other = _cloth_colour(rng) if fresh else np.clip(base * rng.uniform(0.5, 2), 0, 1)
        colours[layer] = base, other
    skin = _between(_SKIN_TONES, rng)
    colours[SKIN] = skin, skin * [0.78, 0.42, 0.4]  # second: lips
    hair = _between(_HAIR_TONES, rng)
    colours[HAIR] = hair, hair * 0.55
    colours[EYE] = [0.8, 0.8, 0.78], [0.05, 0.03, 0.02]
    styles = np.zeros((6, 4))
    for layer in (BOTTOM, TOP, SHOE):
        # rng.choice(6, p=...) draws the same number in ten times the time.
        kind = np.searchsorted(_TOP_PATTERNS if layer == TOP else _PATTERNS, rng.random(), "right")
        styles[layer] = kind, rng.uniform(8, 45), rng.uniform(0, 0.12), 1
    styles[SHOE, :3] = 0, 10, rng.uniform(0, 0.4)
    styles[SKIN], styles[HAIR], styles[EYE] = (0, 10, 0.12, 0), (0, 120, 0.2, 0), (0, 10, 0.6, 0)
    return colours, styles


@functools.cache
def body_faces(num_faces: int) -> np.ndarray:
    """The body's triangles thinned to about `num_faces` (takes some seconds the first time)."""
    model = load_body_model()
    return decimate(model.anny.template_vertices.double().numpy(), model.faces, num_faces)


def dress(
    shape: BodyShape, rng: np.random.Generator, num_faces: int = 9000, tight: bool = False
) -> Dressed:
    """Dresses a body with a drawn outfit; the body is drawn with about `num_faces` triangles.

    Args:
        tight: a shirt and shorts that follow the skin, no long hair: the body's own outline.
    """
    model, outfit = load_body_model(), sample_outfit(shape.gender, rng)
    if tight:
        outfit = outfit._replace(**_TIGHT)
    colours, styles = sample_colours(rng)
    vertices = shape.vertices.astype(float)
    normals = vertex_normals(vertices, model.faces)
    layers, eyes = _layers(shape, outfit)
    offset = np.zeros(len(vertices))
    thickness = (outfit.bottom_offset, outfit.top_offset, 0.006, outfit.hair)
    for column, amount in enumerate(thickness):
        reach = 0.02 if column < 3 else 0.05
        inside = np.clip(layers[:, column] / reach, 0, 1)
        offset = np.maximum(offset, amount * inside * (2 - inside))
    waves = np.sin(vertices @ rng.normal(0, 60, (3, 3)) + rng.uniform(0, 6, 3)).mean(1)
    offset *= 1 + 0.25 * waves
    points = vertices + offset[:, None] * normals
    normals = vertex_normals(points, model.faces)
    meshes = [Mesh(points, normals, body_weights(), body_faces(num_faces), layers, eyes)]
    if outfit.skirt:
        meshes.append(_skirt(shape, outfit))
    if outfit.long_hair and outfit.hair:
        meshes.append(_hair_fall(shape, outfit))
    return assemble(meshes, [], shape, colours, styles, tucked=outfit.tucked)


def _layers(shape: BodyShape, outfit: Outfit) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances (P, 4) of bottom, top, shoe and hair, and the eyeballs (P,)."""
    v, joints = shape.vertices.astype(float), shape.joints
    arm = bone_share("upperarm", "lowerarm", "wrist", "finger", "metacarpal")
    leg = bone_share("upperleg", "lowerleg", "foot", "toe")
    skull = bone_share("head", "neck02", "neck03", "eye")
    left, right = (_along(v, *joints[limb]) for limb in ([13, 14, 15], [12, 11, 10]))
    along = np.where(v[:, 0] > 0, left, right)
    hip, knee, ankle = joints[6, 2], joints[1, 2], joints[0, 2]
    down = np.where(
        v[:, 2] > knee, (hip - v[:, 2]) / (hip - knee), 1 + (knee - v[:, 2]) / (knee - ankle)
    )
    on_arm = arm > 0.3
    neck_plane = (v - joints[8]) @ np.array([0, -0.45, 0.89])
    waist = hip + outfit.hem
    top = np.minimum(v[:, 2] - waist, outfit.collar - 0.02 - neck_plane)
    top = np.where(on_arm, (outfit.sleeve - along) * 0.28, top)
    top = np.where(skull > 0.5, np.minimum(top, outfit.collar - neck_plane), top)
    belt = hip + 0.14
    leg_end = 0.3 if outfit.skirt else max(outfit.leg, 0.35)
    bottom = np.minimum(belt - v[:, 2], (leg_end - down) * 0.4)
    bottom = np.where(on_arm, -_FAR, bottom)
    if outfit.tucked:
        top = np.where(on_arm, top, np.minimum(top, v[:, 2] - belt + 0.01))
    shoe = np.where(leg > 0.5, ankle + 0.01 + outfit.shoe - v[:, 2], -_FAR)
    hair = hair_region(shape, outfit.hair_line) if outfit.hair else np.full(len(v), -_FAR)
    return np.stack([bottom, top, shoe, hair], 1), (bone_share("eye") > 0.5).astype(float)


def hair_region(shape: BodyShape, hair_line: float) -> np.ndarray:
    """Signed distance (P,) m of scalp hair: above a plane from forehead to nape, ears left free."""
    v = shape.vertices.astype(float)
    head = dict(zip(load_body_model().bones, shape.bone_heads))
    skull = bone_share("head", "neck02", "neck03", "eye")
    eye_middle = (head["eye.L"] + head["eye.R"]) / 2
    scale = shape.stature / 1.7
    centre = eye_middle + np.array([0, 0.02, 0.062]) * scale
    plane = (v - centre) @ np.array([0, 0.72, 0.69]) + hair_line * 0.5
    ear = np.hypot(v[:, 1] - eye_middle[1] - 0.085 * scale, v[:, 2] - eye_middle[2] + 0.02 * scale)
    free = np.where(np.abs(v[:, 0]) > 0.05 * scale, ear - (0.035 - hair_line * 0.6), _FAR)
    nape = v[:, 2] - (eye_middle[2] - (0.07 + hair_line) * scale)
    hair = np.where(skull > 0.5, np.minimum(np.minimum(plane, free), nape), -_FAR)
    return np.where(bone_share("eye") > 0.5, -_FAR, hair)


def bone_share(*stems: str) -> np.ndarray:
    """Skinning weight (P,) of the bones whose names start so."""
    model = load_body_model()
    bones = [i for i, bone in enumerate(model.bones) if bone.startswith(stems)]
    return model.weights[:, bones].sum(1)


def _along(v: np.ndarray, shoulder: np.ndarray, elbow: np.ndarray, wrist: np.ndarray) -> np.ndarray:
    """Position along an arm: 0 shoulder, 1 elbow, 2 wrist."""

    def share(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return (v - start) @ (end - start) / ((end - start) @ (end - start))

    upper, fore = share(shoulder, elbow), share(elbow, wrist)
    return np.where(fore > 0, 1 + fore, np.minimum(upper, 1))


def _skirt(shape: BodyShape, outfit: Outfit) -> Mesh:
    """A tube from the waist around both thighs, skinned to pelvis and thighs."""
    v, joints = shape.vertices.astype(float), shape.joints
    hip, knee, ankle = joints[6, 2], joints[1, 2], joints[0, 2]
    bottom = hip - min(outfit.skirt, 1) * (hip - knee) - max(outfit.skirt - 1, 0) * (knee - ankle)
    levels = np.linspace(hip + 0.13, bottom, 14)
    turn = np.linspace(0, 2 * np.pi, _NUM_AROUND, endpoint=False)
    ring = np.stack([np.sin(turn), -np.cos(turn)], 1)
    centre = np.array([0.0, joints[6, 1] + 0.01])
    legs = v[np.abs(v[:, 0]) < 0.27 * shape.stature / 1.7]  # no hands
    points, radius = [], np.zeros(_NUM_AROUND)
    for level in levels:
        near = legs[np.abs(legs[:, 2] - level) < 0.03][:, :2] - centre
        reach = (near @ ring.T).max(0) if len(near) else radius
        radius = np.maximum(reach + 0.012, radius * 0.995)
        around = centre + radius[:, None] * ring
        points.append(np.column_stack([around, np.full(_NUM_AROUND, level)]))
    points = np.concatenate(points)
    depth = np.clip((hip + 0.05 - points[:, 2]) / 0.25, 0, 0.9)
    left = 1 / (1 + np.exp(-points[:, 0] / 0.04))
    thighs = {"upperleg01.L": depth * left, "upperleg01.R": depth * (1 - left)}
    return _shell(points, {"root": 1 - depth} | thighs, closed=True, layer=0)


def _hair_fall(shape: BodyShape, outfit: Outfit) -> Mesh:
    """Hair behind the head and over the nape, skinned to the head and, lower down, the chest."""
    head = dict(zip(load_body_model().bones, shape.bone_heads))
    scale = shape.stature / 1.7
    skull = shape.joints[9] + np.array([0, 0.03, -0.09]) * scale
    rows = np.linspace(0, 1, 12)
    turn = np.linspace(-0.62 * np.pi, 0.62 * np.pi, _NUM_AROUND)
    ring = np.stack([np.sin(turn), np.cos(turn)], 1)
    end = head["head"][2] - outfit.long_hair * scale
    points = []
    for row in rows:
        level = skull[2] + 0.03 * scale + row * (end - skull[2])
        width = (0.088 + 0.012 * np.sin(np.pi * row)) * scale + 0.6 * outfit.hair
        back = skull[1] + 0.015 * scale * row
        around = np.array([0.92, 1.0]) * width * ring + [0, back]
        points.append(np.column_stack([around, np.full(_NUM_AROUND, level)]))
    points = np.concatenate(points)
    low = np.clip((head["neck01"][2] - points[:, 2]) / 0.12, 0, 0.8)
    return _shell(points, {"head": 1 - low, "spine01": low}, closed=False, layer=3)


def _shell(points: np.ndarray, shares: dict[str, np.ndarray], closed: bool, layer: int) -> Mesh:
    """Rows of `_NUM_AROUND` points as a mesh of one layer; shares (n,): weights of drivers."""
    rows = len(points) // _NUM_AROUND
    row, column = np.mgrid[: rows - 1, : _NUM_AROUND - (not closed)]
    a, b = row * _NUM_AROUND + column, row * _NUM_AROUND + (column + 1) % _NUM_AROUND
    c, d = a + _NUM_AROUND, b + _NUM_AROUND
    faces = np.concatenate([np.stack([a, b, d], -1), np.stack([a, d, c], -1)]).reshape(-1, 3)
    weights, layers = np.zeros((len(points), len(driver_names()))), np.full((len(points), 4), -_FAR)
    for name, share in shares.items():
        weights[:, driver_names().index(name)] = share
    layers[:, layer] = 1.0
    return Mesh(points, vertex_normals(points, faces), weights, faces, layers)


def _between(tones: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour near a list of sRGB tones, linear RGB."""
    i = rng.integers(len(tones) - 1)
    tone = tones[i] + rng.random() * (tones[i + 1] - tones[i])
    return (tone / 255 * rng.uniform(0.92, 1.05, 3)).clip(0, 1) ** 2.2


def _cloth_colour(rng: np.random.Generator) -> np.ndarray:
    """A random colour, mostly muted, linear RGB."""
    hue, value = rng.random(), rng.uniform(0.08, 0.95)
    saturation = rng.beta(1.1, 1.6)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation + saturation * wheel)) ** 2.2
