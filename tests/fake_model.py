"""A stand-in for the 3D model that knows the truth and answers with a chosen error.

A test module imports `FakeModel`, and `fake_models_solve_themselves` for its effect.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ptri.evaluation import evaluate
from ptri.geometry.rotations import so3_exp
from ptri.geometry.triangulation import robust_triangulation
from ptri.posterior.body import load_body_prior
from ptri.posterior.modes import FocalLengths
from ptri.posterior.moments import posterior_mean
from ptri.recordings import solve as recordings
from ptri.rig import estimate
from ptri.structures import UNKNOWN_DETECTOR, Cameras, Keypoints, RigPosterior
from ptri.verdict.verdict import Code, Verdict


class FakeDetection(NamedTuple):
    keypoints: Keypoints
    logits: Tensor
    features: Tensor


def detection(images: Tensor, keypoints: Keypoints) -> FakeDetection:
    """Keypoints of images (N, 3, H, W); the rest says nothing."""
    N, size = len(keypoints.xy), images.shape[-1] // 4
    return FakeDetection(keypoints, torch.zeros(N, 17, size, size), torch.zeros(N, 1, 1, 1))


class FakeModel(nn.Module):
    """True keypoints plus noise; true cameras plus a turn of known size; plain triangulation.

    The turn of view v >= 1 about a fixed axis is ``error_deg``; samples scatter around it by
    ``spread_deg``, or share the truth's law where ``honest`` is set.
    """

    detector = UNKNOWN_DETECTOR
    fusion = SimpleNamespace(uses_cameras=False)

    def __init__(self, dataset=None, noise=1.0, error_deg=2.0, spread_deg=2.0, cameras=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dataset, self.noise = dataset, noise
        self.error_deg, self.spread_deg = error_deg, spread_deg
        self.cameras = cameras  # (R (V, 3, 3), t (V, 3)): the same for every rig
        self.seen = 0
        self.solved = []  # number of frames of every call of solve

    def detect(self, images: Tensor) -> FakeDetection:
        parts = []
        while sum(len(part) for part in parts) < len(images):
            sample = self.dataset[self.seen]
            self.seen += 1
            generator = torch.Generator().manual_seed(self.seen)
            noise = self.noise * torch.randn(sample.joints2d.shape, generator=generator)
            parts.append(sample.joints2d + noise)
        xy = torch.cat(parts)
        covariance = torch.eye(2).mul(max(self.noise, 0.5) ** 2).expand(*xy.shape[:2], 2, 2)
        return detection(images, Keypoints(xy, covariance, torch.ones(xy.shape[:2])))

    def joint_features(self, detection: FakeDetection) -> Tensor:
        return detection.features[..., 0].expand(-1, 17, -1)

    def truth(self, K: Tensor) -> tuple[Tensor, Tensor]:
        """True cameras of rigs, found in the data set by the intrinsics of their crops."""
        if self.cameras is not None:
            return tuple(part.expand(len(K), *part.shape) for part in self.cameras)
        known = [self.dataset[item].cameras for item in range(len(self.dataset))]
        rigs = [next(c for c in known if torch.equal(c.K, rig)) for rig in K[:, 0]]
        return torch.stack([c.R for c in rigs]), torch.stack([c.t for c in rigs])

    def solve(self, keypoints: Keypoints, K: Tensor, seed: int = 0) -> RigPosterior:
        B, T, V = K.shape[:3]
        self.solved.append((B, T, V))
        R, t = self.truth(K)
        error = torch.zeros(B, V, 3)
        error[:, 1:, 1] = torch.deg2rad(torch.tensor(self.error_deg))
        # A pooled posterior is as much better as its number of frames says.
        turned = so3_exp(error / T**0.5) @ R
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(64, 1, V, 3, generator=generator) * (self.spread_deg / 57.3 / T**0.5)
        w[:, :, 0] = 0
        samples = so3_exp(w) @ turned
        # Turn the cameras about their centres: t = -R c.
        centre = -(R.mT @ t.unsqueeze(-1))
        samples_t = -(samples @ centre).squeeze(-1)
        log_weights = torch.full((64, B), 1 / 64).log()
        ess, nothing = torch.full((B,), 64.0), samples_t.new_zeros(64, B, 0)
        return RigPosterior(samples, samples_t, log_weights, ess, nothing)

    def fuse(self, keypoints: Keypoints, K: Tensor, posterior: RigPosterior, joint_features=None):
        R, t = posterior_mean(posterior)
        prediction, _ = robust_triangulation(keypoints, Cameras(K, R, t))
        return type(prediction)(*(part.float() for part in prediction))


@pytest.fixture(scope="module", autouse=True)
def fake_models_solve_themselves():
    """`ptri.rig.estimate.solve`, but a `FakeModel` answers itself, and is accepted."""
    real = estimate.solve

    def solve(model, keypoints, K, options, seed=0, **more):
        if not isinstance(model, FakeModel):
            return real(model, keypoints, K, options, seed, **more)
        one = torch.ones(len(K), dtype=torch.float64)
        body = load_body_prior()
        best = SimpleNamespace(errors=SimpleNamespace(tail=0 * one), shared=body.mean[None])
        evidence = SimpleNamespace(scale2=one, best=best, body=body)
        together = SimpleNamespace(frames=0 * one, joints=0 * one)
        V = K.shape[2]
        unknown = torch.full((len(K), 1, V, V), torch.inf)
        told = FocalLengths(torch.zeros(len(K), 1, V), unknown)
        modes = SimpleNamespace(together=together, mean=one[:, None, None], told=told)
        posterior = model.solve(keypoints, K, seed)
        rig = SimpleNamespace(posterior=posterior, evidence=evidence, modes=modes)
        return estimate.Solution(rig, [Verdict(Code.ACCEPTED)] * len(K), None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "solve", solve)
        patch.setattr(evaluate, "solve", solve)
        patch.setattr(recordings, "advise", lambda *_: None)  # there is nothing to predict from
        yield
