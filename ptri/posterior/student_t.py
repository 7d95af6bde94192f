"""The heavy-tailed proposal: multivariate Student-t.

Three functions: sample from given standard noise, log density, and fit to weighted samples. Noise
is drawn once by the caller and shared over the batch, so that a batch element's result does not
depend on the others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class StudentT(NamedTuple):
    """Multivariate Student-t with scale matrix ``chol @ chol^T``."""

    mean: Tensor  # (..., D)
    chol: Tensor  # (..., D, D) lower triangular
    df: float


class StandardNoise(NamedTuple):
    """Standard draws that every batch element shares."""

    normal: Tensor  # (M, D)
    chi2: Tensor  # (M,) chi-square with df degrees of freedom, over df


def standard_noise(
    num_samples: int, dim: int, df: float, generator: torch.Generator, dtype: torch.dtype
) -> StandardNoise:
    """Draws the noise of a Student-t: normal (M, D) and chi2 / df (M,), on the CPU."""
    normal = torch.randn(num_samples, dim, generator=generator, dtype=dtype)
    # A chi-square is twice a gamma; torch's own gamma sampler takes the generator.
    shape = torch.full((num_samples,), df / 2, dtype=dtype)
    chi2 = 2 * torch._standard_gamma(shape, generator=generator)
    return StandardNoise(normal, chi2 / df)


def student_t_sample(law: StudentT, noise: StandardNoise) -> Tensor:
    """Samples (M, ..., D)."""
    M, D = noise.normal.shape
    batch = law.mean.shape[:-1]
    standard = noise.normal / noise.chi2.sqrt()[:, None]
    standard = standard.reshape(M, *([1] * len(batch)), D)
    return law.mean + (standard.movedim(0, -2) @ law.chol.mT).movedim(-2, 0)


def student_t_log_prob(law: StudentT, x: Tensor) -> Tensor:
    """Log density (M, ...) of x (M, ..., D) (Kotz and Nadarajah 2004, eq. 1.1)."""
    D, df = law.mean.shape[-1], law.df
    eye = torch.eye(D, dtype=law.chol.dtype, device=law.chol.device).expand_as(law.chol)
    inverse = torch.linalg.solve_triangular(law.chol, eye, upper=False)
    # One product a law, (M, D) @ (D, D): many small triangular solves take ten times as long.
    deviation = (x - law.mean).movedim(0, -2)  # (..., M, D)
    whitened = (deviation @ inverse.mT).movedim(-2, 0)
    log_det = law.chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = math.lgamma((df + D) / 2) - math.lgamma(df / 2) - 0.5 * D * math.log(df * math.pi)
    return constant - log_det - 0.5 * (df + D) * torch.log1p(whitened.square().sum(-1) / df)


def student_t_fit(x: Tensor, weights: Tensor, prior: StudentT, prior_samples: float) -> StudentT:
    """Moments of weighted samples, shrunk to a prior law worth ``prior_samples`` samples.

    Args:
        x: (M, ..., D); weights: (M, ...) non-negative, summing to one or less over M.
        prior: the law to shrink to.
        prior_samples: weight of the prior against the effective number of samples.
    """
    total = weights.sum(0)  # (...)
    # 1e-12 guards components that hold no sample at all: they keep the prior.
    share = weights / total.clamp_min(1e-12)
    ess = total / share.square().sum(0).clamp_min(1e-12)
    keep = (prior_samples / (prior_samples + ess))[..., None]
    mean = torch.einsum("m...,m...d->...d", share, x)
    mean = keep * prior.mean + (1 - keep) * mean
    deviation = x - mean
    moment = torch.einsum("m...,m...d,m...e->...de", share, deviation, deviation)
    keep = keep[..., None]
    covariance = keep * (prior.chol @ prior.chol.transpose(-1, -2)) + (1 - keep) * moment
    return StudentT(mean, safe_cholesky(covariance, prior.chol)[0], prior.df)


def safe_cholesky(covariance: Tensor, fallback: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors, and where a matrix is not positive definite, the fallback's.

    Returns:
        (..., D, D) factors and (...,) bool, True where the fallback was taken (callers report it).
    """
    chol, info = torch.linalg.cholesky_ex(covariance)
    failed = (info > 0) | ~torch.isfinite(chol).all(-1).all(-1)
    return torch.where(failed[..., None, None], fallback, chol), failed
