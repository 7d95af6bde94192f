"""Rigs and people with known truth for the geometry's tests, on generated scenes."""

import torch

from ptri import config
from ptri.geometry.rays import normalise
from ptri.people.scenes import SceneNumbers, generate_batch
from ptri.posterior.body import load_body_prior
from ptri.posterior.equations import Bundle, move_cameras, person_centre
from ptri.structures import tree_map

BODY = load_body_prior(spread=0.05)


def gaussian_scene(
    batch=8, views=4, frames=1, seed=0, noise=0.004, missing=0.05, fps=2.0, overrides=()
):
    """Scenes whose noise is exactly what the covariances say; float64."""
    chosen = ["families=[ring]", "held_out_families=[]"]
    chosen += [f"errors.noise={noise}", f"errors.missing_rate={missing}"]
    chosen = [f"generated.{setting}" for setting in chosen]
    settings = config.load(None, ["run.name=test", *chosen, *overrides])
    numbers = SceneNumbers(fps=fps, max_truncated=0.0)
    scene = generate_batch(settings, seed, 0, batch, views, frames, exact=True, numbers=numbers)
    return tree_map(lambda value: value.double(), tuple(scene[:4]))


def starts_near(cameras, joints, degrees=10.0, millimetres=60.0, count=2, seed=0):
    """Candidate bundles (B, count, ...): the truth, moved by random rotations and noise."""
    generator = torch.Generator().manual_seed(seed)
    B, V = cameras.t.shape[:2]

    def repeat(value):
        return value[:, None].expand(-1, count, *value.shape[1:])

    truth = Bundle(cameras.R, cameras.t, joints, None)
    size = torch.tensor([degrees * torch.pi / 180 / 3**0.5] * 3 + [millimetres] * 3)
    step = torch.randn(B, count, V - 1, 6, generator=generator, dtype=torch.float64) * size
    centre = repeat(person_centre(truth))
    R, t = move_cameras(repeat(cameras.R), repeat(cameras.t), centre, step.flatten(2))
    shape = (B, count, *joints.shape[1:])
    noise = millimetres * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Bundle(R, t, repeat(joints) + noise, BODY.mean.expand(B, count, -1))


def observed(batch=8, views=4, frames=1, seed=0, **options):
    keypoints, K, cameras, joints = gaussian_scene(batch, views, frames, seed, **options)
    return normalise(keypoints, K), cameras, joints
