"""How well proportions tell a person's size, which is all that gives unknown cameras millimetres.

People's bones are measured without noise but for the detector's own joint definitions, up to one
unknown factor, and the factor is estimated with the posterior's law of bone lengths. No rig is
solved: this is what is left when everything else is known. With --rigs whole rigs are solved too.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from ptri import config as configuration
from ptri.config import Config, PosteriorConfig, RunConfig
from ptri.people.bodies import sample_clips
from ptri.people.detections import body_fixed
from ptri.people.draws import Draws
from ptri.people.scenes import Scene, generate_batch
from ptri.posterior.body import BodyPrior, bone_vectors, load_body_prior
from ptri.rig.estimate import estimate_rig
from ptri.skeleton import H36M17
from ptri.structures import Keypoints

PEOPLE = {  # name -> relative spread of bones, mm of joint definitions, share of children
    "rendered adults": (0.0, 0.0, 0.0),
    "rendered children": (0.0, 0.0, 1.0),
    "generated adults (configs' defaults)": (0.05, 20.0, 0.0),
    "generated children": (0.05, 20.0, 1.0),
}
LAWS = {  # name -> settings of the section posterior
    "as statistics": {"bone_definition": 0.0},
    "default": {},
    "default, children 0.1": {"children": 0.1},
    "default, children 0.25": {"children": 0.25},
    "default, children 1": {"children": 1.0},
    "bone_spread 0.05": {"bone_spread": 0.05},
}
POSES = 4  # of each person, whose mean length a bone has


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--people", type=int, default=2000, help="of each kind")
    parser.add_argument("--rigs", type=int, default=0, help="also solve so many, 10 frames each")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> str:
    """Draws people and estimates their size.

    Returns:
        The tables to print.
    """
    torch.set_num_threads(1)
    lines = [
        "Relative error of the size, %: bias and RMS over people; mm: mean distance of joints from"
        " the hip times the mean absolute error;",
        "best: of all linear functions of log proportions, fitted to half of these very people and"
        " tried on the others",
    ]
    for name, (spread, definition, children) in PEOPLE.items():
        lengths, radius = measured(args.people, args.seed, spread, definition, children)
        lines += ["", f"{name}: bones spread by {spread:.0%}, definitions within {definition:g} mm"]
        lines.append(f"  {'law of bone lengths':<26}{'bias':>8}{'RMS':>8}{'mm':>8}")
        found = {law: size_error(lengths, prior_of(changes)) for law, changes in LAWS.items()}
        found["best"] = best_error(lengths)
        for law, error in found.items():
            figures = 100 * error.mean(), 100 * error.square().mean().sqrt()
            figures = [f"{float(value):>8.1f}" for value in (*figures, radius * error.abs().mean())]
            lines.append(f"  {law:<26}{''.join(figures)}")
    if args.rigs:
        lines += ["", *_solve(args.rigs, args.seed)]
    return "\n".join(lines)


def _solve(num: int, seed: int) -> list[str]:
    """Size of the people in rigs that are solved from a clip."""
    lines = [
        f"{num} clips of 10 frames before a ring of 4, solved: bones spread by 0 %, definitions"
        " within 5 mm",
        f"  {'people':<12}{'children':>9}{'bias':>8}{'RMS':>8}",
    ]
    for share, name in ((0.0, "adults"), (1.0, "children")):
        options = ["run.name=scale", f"generated.children={share}", "generated.families=[ring]"]
        options += ["generated.bone_spread=0", "generated.definition_mm=5"]
        scene = generate_batch(configuration.load(None, options), seed, 0, num, 4, 10)
        for children in (0.0, 0.1, 0.25, 1.0):
            error = torch.stack([_rig_size_error(scene, i, children, seed) for i in range(num)])
            figures = 100 * error.mean(), 100 * error.square().mean().sqrt()
            text = "".join(f"{float(value):>8.1f}" for value in figures)
            lines.append(f"  {name:<12}{children:>9.2f}{text}")
    return lines


def _rig_size_error(scene: Scene, i: int, children: float, seed: int) -> Tensor:
    """Log of the solved person's size over the true one's."""
    keypoints = Keypoints(*(value[i] for value in scene.keypoints))
    found = estimate_rig(
        keypoints.xy, scene.K[i, 0], keypoints.confidence, keypoints.covariance,
        children=children, num_samples=128, num_iterations=2, seed=seed,
    )  # fmt: skip

    def size(joints: Tensor) -> Tensor:
        return (joints - joints[:, H36M17.root, None]).double().norm(dim=-1).mean()

    return (size(found.joints3d) / size(scene.joints3d[i])).log()


def prior_of(changes: dict[str, float]) -> BodyPrior:
    """The law of bone lengths that the posterior uses with some settings changed."""
    options = Config(run=RunConfig(name="scale"), posterior=PosteriorConfig(**changes)).posterior
    return load_body_prior(
        definition=options.bone_definition, spread=options.bone_spread, children=options.children
    )


def measured(
    num: int, seed: int, spread: float, definition: float, children: float
) -> tuple[Tensor, float]:
    """Log bone lengths (num, 16) as a detector's joints have them, and joints' mean distance (mm).

    Args:
        definition: mm, as ``generated.definition_mm``; the rest as `sample_bone_lengths`.
    """
    draws = Draws.from_seeds([(seed, person) for person in range(num)])
    joints = sample_clips(draws, POSES, 0.2, bone_spread=spread, children=children).joints3d
    J = joints.shape[-2]
    offset = body_fixed(joints, draws.normal(1, J, 1), draws.normal(1, J, 3))
    strength = math.sqrt(0.5) * definition * draws.uniform(1, 1, 1)
    lengths, _ = bone_vectors((joints + strength * offset).double(), load_body_prior())
    radius = (joints - joints[..., H36M17.root, None, :]).norm(dim=-1).mean()
    return lengths.mean(1).log(), float(radius)


def size_error(lengths: Tensor, prior: BodyPrior) -> Tensor:
    """Estimated over true log size (N,): generalised least squares on log lengths (N, 16)."""
    weight = torch.linalg.solve(prior.covariance, torch.ones_like(prior.mean))
    # The bones' excess over the law is what the estimate takes for a larger unit.
    return (prior.mean - lengths) @ (weight / weight.sum())


def best_error(lengths: Tensor) -> Tensor:
    """The error (N / 2,) of the best linear estimate from proportions."""
    mean = lengths.mean(1, keepdim=True)
    features = torch.cat([lengths - mean, torch.ones_like(mean)], dim=1)
    half = len(lengths) // 2
    # Proportions sum to zero: gelsd takes the least of the equal solutions.
    fit = torch.linalg.lstsq(features[:half], mean[:half], driver="gelsd").solution
    return (features[half:] @ fit - mean[half:]).squeeze(1)
