"""Adult bodies from Anny: phenotypes, rest shapes, and the 17 Human3.6M joints on them.

Body axes (Anny's): x to the person's left, y backwards (the person faces -y), z up. Lengths here
are metres; everything written to disk is in mm.

The 17 joints (`H36M17` order) are defined on Anny's bones and mesh, in the rest shape, and move
with the bone named:

* foot (ankle), knee, hip, shoulder, elbow, wrist: heads of ``foot``, ``lowerleg01``,
  ``upperleg01``, ``upperarm01``, ``lowerarm01`` and ``wrist`` of that side;
* hip (root): midpoint of the two hip joints (moves with ``root``);
* spine: head of ``spine02`` (about 23 cm above the root joint);
* thorax: head of ``neck01``, the base of the neck;
* nose ("Neck/Nose"): midpoint of the head of bone ``head`` (base of the skull) and the tip of the
  nose, the foremost vertex of the head near the middle plane; moves with ``head``;
* head: the crown, the mean of the 12 highest vertices of the rest mesh; moves with ``head``.
"""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import numpy as np

from ptri.skeleton import COCO17, H36M17

STATURE_RANGE = (1.50, 1.95)  # m, kept by truncation
STATURE_MEN = (1.77, 0.07)  # m, mean and standard deviation
STATURE_WOMEN = (1.64, 0.065)
SAMPLING_RULE = (
    "half men, half women; stature normal (men 1.77 +- 0.07 m, women 1.64 +- 0.065 m) truncated to "
    "1.50-1.95 m, reached by solving Anny's height phenotype; gender within 0.15 of its end; age "
    "uniform 0.62-0.95 (young adult to old); muscle 0.3-0.8, weight 0.25-0.8, proportions 0.2-1, "
    "cup size and firmness 0.2-0.8 uniform; origins Dirichlet(0.6)"
)
CHILDREN_RULE = (
    "as adults, but Anny's age = 0.3 + 0.32 a and stature = 1.05 + 0.55 a +- 0.075 m, a and the "
    "deviation uniform"
)

# Joint -> (bone whose head it is, bone it moves with)
_JOINT_BONES = {
    "right_foot": "foot.R",
    "right_knee": "lowerleg01.R",
    "right_hip": "upperleg01.R",
    "left_hip": "upperleg01.L",
    "left_knee": "lowerleg01.L",
    "left_foot": "foot.L",
    "spine": "spine02",
    "thorax": "neck01",
    "right_wrist": "wrist.R",
    "right_elbow": "lowerarm01.R",
    "right_shoulder": "upperarm01.R",
    "left_shoulder": "upperarm01.L",
    "left_elbow": "lowerarm01.L",
    "left_wrist": "wrist.L",
}
JOINT_CARRIERS = tuple(
    {"hip": "root", "nose": "head", "head": "head"}.get(joint) or _JOINT_BONES[joint]
    for joint in H36M17.joints
)
_NUM_CROWN_VERTICES = 12
_BATCH = 50  # people built at once


class BodyModel(NamedTuple):
    """What the renderer keeps of Anny, as numpy arrays. P vertices, F triangles, B bones."""

    anny: object  # the Anny module, for rest shapes
    faces: np.ndarray  # (F, 3) int32
    bones: tuple[str, ...]  # B names
    parents: np.ndarray  # (B,) int, -1 for the root
    weights: np.ndarray  # (P, B) float32, rows sum to 1
    crown: np.ndarray  # indices of the crown vertices
    nose_tip: int  # index of the nose tip's vertex


class BodyShape(NamedTuple):
    """A person at rest, body axes, metres, soles at z = 0."""

    vertices: np.ndarray  # (P, 3) float32
    bone_heads: np.ndarray  # (B, 3)
    joints: np.ndarray  # (17, 3)
    stature: float  # m
    gender: float  # 0 man, 1 woman
    phenotypes: dict[str, float]  # Anny's, the height solved
    floor: float  # m, height of the soles in Anny's own rest pose


class BaseMesh(NamedTuple):
    """MakeHuman's whole base mesh on Anny's rig: Anny's own vertices and those that it drops
    (helper geometry, on which most garments hang). N = 19158 vertices."""

    anny: object  # Anny module of which only the dropped vertices are kept
    body: np.ndarray  # (P,) base vertex of each of Anny's vertices
    helpers: np.ndarray  # (N - P,) the other base vertices
    weights: np.ndarray  # (N, B) float32, bones as in `BodyModel`, rows sum to 1
    template: np.ndarray  # (N, 3) m, rest vertices of Anny's template


def _load_anny(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anny

        return anny.Anny(skinning_method="lbs", phenotypes="all", **options)


@functools.cache
def load_body_model() -> BodyModel:
    """Loads Anny (the first time ever it builds a cache, which takes one to two minutes).

    Raises:
        ImportError: if the `render` extra is not installed.
    """
    model = _load_anny()
    template = model.template_vertices.double().numpy()
    weights = _dense_weights(model)
    on_head = weights[:, model.bone_labels.index("head")] > 0.5
    middle = on_head & (np.abs(template[:, 0]) < 0.01)
    nose_tip = int(np.argmin(np.where(middle, template[:, 1], np.inf)))
    crown = np.argsort(-template[:, 2])[:_NUM_CROWN_VERTICES]
    return BodyModel(
        anny=model,
        faces=model.faces.numpy().astype(np.int32),
        bones=tuple(model.bone_labels),
        parents=np.array(model.bone_parents, np.int64),
        weights=weights,
        crown=crown,
        nose_tip=nose_tip,
    )


@functools.cache
def load_base_mesh() -> BaseMesh:
    """Loads the whole base mesh (the first time ever Anny builds a cache, in about a minute).

    Raises:
        ImportError: if the `render` extra is not installed.
    """
    model = _load_anny(topology="anny-full")
    body = load_body_model().anny.base_mesh_vertex_indices.numpy()
    template = model.template_vertices.double().numpy()
    helpers = np.setdiff1d(np.arange(len(template)), body)
    weights = _dense_weights(model)
    # The full blend shapes take 146 MB; Anny's own vertices come from the body model.
    model.blendshapes = model.blendshapes[:, helpers].clone()
    model.template_vertices = model.template_vertices[helpers].clone()
    return BaseMesh(model, body, helpers, weights, template)


def base_vertices(shape: BodyShape) -> np.ndarray:
    """Rest vertices (N, 3) m of the whole base mesh of a person, axes as `BodyShape`."""
    base = load_base_mesh()
    values = {name: np.array([value]) for name, value in shape.phenotypes.items()}
    helpers = _rest(base, values, values["height"])[0][0]
    vertices = np.empty((len(base.weights), 3))
    vertices[base.body] = shape.vertices
    vertices[base.helpers] = helpers - [0, 0, shape.floor]
    return vertices


def sample_phenotypes(num: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws adult phenotypes by `SAMPLING_RULE`, all but "height".

    Returns:
        label -> (num,) values; and "stature", (num,) m, the standing height to reach.
    """
    woman = rng.permutation(np.arange(num) % 2).astype(float)
    mean, std = (np.where(woman > 0, *pair) for pair in zip(STATURE_WOMEN, STATURE_MEN))
    stature = mean + std * rng.standard_normal(num)
    while np.any(bad := (stature < STATURE_RANGE[0]) | (stature > STATURE_RANGE[1])):
        stature[bad] = mean[bad] + std[bad] * rng.standard_normal(int(bad.sum()))
    origins = zip(("african", "asian", "caucasian"), rng.dirichlet([0.6] * 3, num).T)
    return {
        "stature": stature,
        "gender": np.abs(woman - 0.15 * rng.random(num)),
        "age": rng.uniform(0.62, 0.95, num),
        "muscle": rng.uniform(0.3, 0.8, num),
        "weight": rng.uniform(0.25, 0.8, num),
        "proportions": rng.uniform(0.2, 1.0, num),
        "cupsize": rng.uniform(0.2, 0.8, num),
        "firmness": rng.uniform(0.2, 0.8, num),
        **dict(origins),
    }


def build_shapes(phenotypes: dict[str, np.ndarray]) -> list[BodyShape]:
    """Rest shapes of the given phenotypes; the height phenotype is solved from the stature.

    Args:
        phenotypes: as `sample_phenotypes` returns them.

    Returns:
        One `BodyShape` per person.
    """
    model = load_body_model()
    stature = np.asarray(phenotypes["stature"], float)
    low, high = np.zeros_like(stature), np.ones_like(stature)
    # The stature is piecewise linear and increasing in the height phenotype: regula falsi.
    span_low, span_high = (
        np.ptp(_rest(model, phenotypes, height)[0][..., 2], axis=1) for height in (low, high)
    )
    height = np.clip((stature - span_low) / (span_high - span_low), 0, 1)
    error = stature - np.ptp(_rest(model, phenotypes, height)[0][..., 2], axis=1)
    height = np.clip(height + error / (span_high - span_low), 0, 1)
    vertices, heads = _rest(model, phenotypes, height)
    solved = {name: values for name, values in phenotypes.items() if name != "stature"}
    solved["height"] = height
    shapes = []
    for i in range(len(stature)):
        floor = np.array([0, 0, vertices[i, :, 2].min()])
        points, bone_heads = vertices[i] - floor, heads[i] - floor
        head = dict(zip(model.bones, bone_heads))
        joints = {joint: head[bone] for joint, bone in _JOINT_BONES.items()}
        joints["hip"] = (joints["left_hip"] + joints["right_hip"]) / 2
        joints["nose"] = (head["head"] + points[model.nose_tip]) / 2
        joints["head"] = points[model.crown].mean(0)
        shapes.append(
            BodyShape(
                vertices=points.astype(np.float32),
                bone_heads=bone_heads,
                joints=np.stack([joints[name] for name in H36M17.joints]),
                stature=float(np.ptp(points[:, 2])),
                gender=float(phenotypes["gender"][i]),
                phenotypes={name: float(values[i]) for name, values in solved.items()},
                floor=float(floor[2]),
            )
        )
    return shapes


@functools.cache
def coco_weights() -> np.ndarray:
    """(17, P) weights of the body's vertices in COCO's keypoints, from Anny."""
    from anny.keypoints import KeypointsRegressor

    regressor = KeypointsRegressor.coco(load_body_model().anny, labels=list(COCO17.joints))
    return regressor.regression_weights.double().numpy()


def grow_down(phenotypes: dict[str, np.ndarray], age: np.ndarray, size: np.ndarray) -> None:
    """Turns adults into children of about 4 to 14 years, in place, by `CHILDREN_RULE`.

    Args:
        phenotypes: as `sample_phenotypes` returns them.
        age, size: (num,) in [0, 1], how far grown and how tall for that.
    """
    phenotypes["age"] = 0.3 + 0.32 * age  # Anny's ages: 1/3 child, 2/3 young adult
    phenotypes["stature"] = 1.05 + 0.55 * age + 0.15 * (size - 0.5)


def body_statistics(num_bodies: int, seed: int = 0) -> dict:
    """Mean and covariance of log bone lengths (log mm) and of the stature, adults and children.

    Args:
        num_bodies: adults drawn, and children.

    Returns:
        A JSON-ready dict of the adults, with one of the children in it; bones in the order of
        `H36M17.bones`.
    """
    rng = np.random.default_rng(seed)
    adults, children = (_statistics(num_bodies, rng, young) for young in (False, True))
    drawn = f"{num_bodies} bodies, seed {seed}; sampling:"
    return {
        "source": f"Anny adults, {drawn} {SAMPLING_RULE}",
        "command": "scripts/render_people.py --body-statistics",
        "joint_definition": "ptri/render/people/body.py",
        "bones": [f"{H36M17.joints[c]}-{H36M17.joints[p]}" for c, p in H36M17.bones],
        **adults,
        "children": {"source": f"Anny children, {drawn} {CHILDREN_RULE}", **children},
    }


def _statistics(num_bodies: int, rng: np.random.Generator, young: bool) -> dict:
    shapes = []
    for first in range(0, num_bodies, _BATCH):
        num = min(_BATCH, num_bodies - first)
        phenotypes = sample_phenotypes(num, rng)
        if young:
            grow_down(phenotypes, rng.random(num), rng.random(num))
        shapes += [(shape.joints, shape.stature) for shape in build_shapes(phenotypes)]
    joints, stature = (1000 * np.array(values) for values in zip(*shapes))
    child, parent = np.array(H36M17.bones).T
    length = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
    log_length, log_stature = np.log(length), np.log(stature)
    return {
        "mean_log_length": np.round(log_length.mean(0), 6).tolist(),
        "covariance_log_length": np.round(np.cov(log_length.T), 8).tolist(),
        "mean_length_mm": np.round(length.mean(0), 2).tolist(),
        "std_length_mm": np.round(length.std(0), 2).tolist(),
        "stature_mean_mm": round(float(stature.mean()), 2),
        "stature_std_mm": round(float(stature.std()), 2),
        "log_stature_mean": round(float(log_stature.mean()), 6),
        "log_stature_std": round(float(log_stature.std()), 6),
    }


def _dense_weights(model) -> np.ndarray:
    """Skinning weights (vertices, bones) float32 of an Anny module, rows sum to 1."""
    index, value = model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy()
    weights = np.zeros((len(index), len(model.bone_labels)), np.float32)
    np.add.at(weights, (np.arange(len(index))[:, None], index), value.astype(np.float32))
    return weights / weights.sum(1, keepdims=True)


def _rest(
    model: BodyModel | BaseMesh, phenotypes: dict[str, np.ndarray], height: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rest vertices (N, P, 3) and bone heads (N, B, 3) for (N,) height phenotypes."""
    import torch
    from anny.skinning.skinning import apply_linear_blendshape

    anny_model = model.anny
    values = {k: torch.as_tensor(v) for k, v in phenotypes.items() if k != "stature"}
    values["height"] = torch.as_tensor(height)
    tensors = anny_model.get_tensor_inputs(None, values, None, None)
    with torch.no_grad():
        coefficients = anny_model._get_phenotype_blendshape_coefficients(*tensors[1:])
        vertices = anny_model.get_rest_vertices(coefficients)
        heads = apply_linear_blendshape(
            anny_model.template_bone_heads, anny_model.bone_heads_blendshapes, coefficients
        )
    return vertices.numpy(), heads.numpy()
