"""How a simulated 2D detector errs: the numbers of ``generated.errors``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ptri.errors import UserError
from ptri.fields import Section, number
from ptri.skeleton import H36M17, SKELETONS


@dataclass(frozen=True)
class ErrorModel(Section):
    """Errors of simulated detections (`ptri.people.detections`).

    Sizes "of the person" are relative to the height in px at which 1.7 m appears at the hip's
    depth: 435 px for Human3.6M's cameras. Rates are shares of the detections.
    """

    NAME = "generated.errors"

    fps: float = number(10.0, above=0)  # frames per second, for what lasts; scenes have their own
    joint_set: str = H36M17.name  # of the detector: joints that its set lacks are never seen, and
    # some are means of others; a name of ptri/skeletons.json
    noise: float = number(0.007, 0)  # of the person: standard deviation of an average joint
    # How hard the 17 joints are, factors on it; []: those of ptri/people/detections.py
    joint_noise: list[float] = field(default_factory=list)
    clip_spread: float = number(0.35, 0)  # log-normal factor of the noise per clip
    view_spread: float = number(0.2, 0)  # the same per view
    noise_spread: float = number(0.4, 0)  # and per joint and frame, known to the detector
    steady_spread: float = number(0.0, 0, 1)  # share of that spread's variance that a joint keeps
    # in a view for the whole clip
    anisotropy: float = number(0.3, 0)  # log of the noise ellipse's axis over its mean radius
    hidden_noise: float = number(2.5, 1)  # factor on the noise of joints behind the trunk
    correlated_share: float = number(0.7, 0, 1)  # of the noise variance that is AR(1) over frames
    correlation_s: float = number(0.4, 0)  # its correlation time, s: rho = e^(-1 / (fps * this))
    # Systematic errors; each clip draws its own strength between 0 and these.
    definition_mm: float = number(20.0, 0)  # the detector's joints lie off ours, fixed to the body
    # mm, the same in everybody: along the bone, left, up, forwards for each of the 17 joints
    definition_mean: list[list[float]] = field(default_factory=list)
    view_bias: float = number(0.006, 0)  # of the person: constant error per view and joint
    bias_follows: float = number(0.0, 0, 2)  # both times the noise's log-normal factors to this
    misreport: float = number(0.25, 0)  # log-normal factor, reported over true noise
    overstate: float = number(1.0, above=0)  # reported over true standard deviation
    joint_stated: list[float] = field(default_factory=list)  # factors on it, a joint each; []: 1
    rounding: float = number(0.4, 0, 1)  # 1: reported covariances are circular
    outlier_rate: float = number(0.03, 0, 0.5)  # joints somewhere else altogether
    outlier_size: float = number(0.12, 0)  # of the person: standard deviation of those errors
    confident_outliers: float = number(0.3, 0, 1)  # share of outliers the detector is sure of
    # Faults of whole views; each view of a clip draws its own rate between 0 and these.
    gross_rate: float = number(0.0, 0, 0.9)  # joints anywhere in the box, as sure as good ones
    drop_rate: float = number(0.0, 0, 0.9)  # joints not detected, beside missing_rate
    flat_views: float = number(0.0, 0, 1)  # share of views with one confidence for all joints
    body_swap_rate: float = number(0.01, 0, 0.5)  # left and right exchanged in a view
    limb_swap_rate: float = number(0.015, 0, 0.5)  # the same of both arms, or both legs
    limb_copy_rate: float = number(0.0, 0, 0.5)  # an arm's or leg's end put on the other one's
    profile_copies: float = number(1.0, above=0)  # factor on that rate for people in profile
    confident_swaps: float = number(1.0, 0, 1)  # share of exchanged or copied joints it is sure of
    fault_s: float = number(0.25, 0)  # s, time over which outliers, swaps, losses come and go
    missing_rate: float = number(0.04, 0, 0.9)  # single joints not detected
    missing_hidden_rate: float = number(0.3, 0, 1)  # joints behind the trunk not detected
    missing_view_rate: float = number(0.01, 0, 0.9)  # person lost in a view; two always stay
    confidence_noise: float = number(0.6, 0)  # on the confidence's logit
    confidence_logit: float = number(1.8)  # confidence's logit at an error of noise ...
    confidence_slope: float = number(1.5, 0)  # ... and its fall for each e-fold of the error

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.joint_set not in SKELETONS:
            raise UserError(
                f"{self.NAME}.joint_set: no joint set {self.joint_set!r:.40}; expected one of "
                f"{', '.join(SKELETONS)}"
            )
        joints = len(H36M17.joints)
        for name in ("joint_noise", "joint_stated"):
            values = getattr(self, name)
            if len(values) not in (0, joints) or not all(0 < v < math.inf for v in values):
                raise UserError(
                    f"{self.NAME}.{name}: expected {joints} positive numbers, one a joint of "
                    f"h36m17, got {values}"
                )
        rows = self.definition_mean
        right = len(rows) in (0, joints) and all(len(row) == 4 for row in rows)
        if not right or not all(math.isfinite(value) for row in rows for value in row):
            raise UserError(
                f"{self.NAME}.definition_mean: expected {joints} rows of four numbers, one a joint "
                "of h36m17 (mm along the bone, left, up, forwards)"
            )
