"""A fit in words: the table, and the settings as YAML."""

from __future__ import annotations

import math

import yaml

from detector_errors.bones import bone_ratio
from detector_errors.checks import check
from detector_errors.clips import Clips, simulate
from detector_errors.fit import Fit
from detector_errors.moments import LABELS, measure
from detector_errors.truth import true_views
from ptri.evaluation.table import grid
from ptri.people.error_model import ErrorModel
from ptri.structures import Detector

UNLIKE = 3.0  # standard errors: beyond it a row is marked
_FRESH = 1000  # seeds of the simulations shown lie this far from those fitted with


def settings_of(fit: Fit, clips: Clips) -> dict[str, object]:
    """The numbers of ``generated.errors``: errors as fitted; rounded."""
    options = fit.options
    settings: dict[str, object] = {"joint_set": clips.joint_set}
    settings |= {name: _rounded(getattr(options, name)) for name in fit.names}
    settings["joint_noise"] = [round(value, 3) for value in options.joint_noise]
    settings["joint_stated"] = [round(value, 3) for value in options.joint_stated]
    settings["definition_mean"] = [[round(v, 1) + 0.0 for v in r] for r in options.definition_mean]
    return settings | missing_rates(clips)


def detector_of(fit: Fit, clips: Clips, frame_worth: float) -> Detector:
    """What the posterior needs to know of the detector: bones as measured, the rest as fitted."""
    options = fit.options
    exchanged = options.body_swap_rate + options.limb_swap_rate + options.limb_copy_rate
    ratio = bone_ratio(clips.keypoints, clips.moving_cameras(), clips.joints)
    ratio = ratio.nan_to_num(1.0)  # bones that the detector does not draw
    return Detector(
        tuple(round(value, 3) for value in ratio.tolist()),
        tuple(round(options.overstate * value, 3) for value in options.joint_stated),
        frame_worth,
        # Half of these move a joint by less than its noise: the limbs of people in profile.
        round(min(0.5 * exchanged, 0.5), 3),
    )


def missing_rates(clips: Clips) -> dict[str, float]:
    """Shares of the joints inside the images that the detector leaves out of those it knows."""
    truth = true_views(clips)
    gone = clips.keypoints.xy.isnan().any(-1) & clips.inside
    known = ~clips.keypoints.xy.isnan().any(-1).flatten(0, 2).all(0)  # (17,)
    lost = (gone | ~clips.inside).all(-1) & clips.inside.any(-1)  # (B, T, V)
    seen = clips.inside & known & ~lost.unsqueeze(-1)
    single = float(gone[seen & ~truth.hidden].double().mean())
    hidden = seen & truth.hidden
    behind = float(gone[hidden].double().mean()) if hidden.any() else 0.0
    return {
        "missing_rate": _rounded(single),
        "missing_hidden_rate": _rounded(max(1 - (1 - behind) / max(1 - single, 1e-9), 0.0)),
        "missing_view_rate": _rounded(float(lost.double().mean())),
    }


def to_yaml(settings: dict[str, object], comment: str) -> str:
    """A file of these settings."""
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    return lines + yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=1000)


def table(fit: Fit, clips: Clips, start: ErrorModel, seed: int) -> str:
    """Measured beside simulated, before and after the fit; then what was not fitted."""
    truth = true_views(clips)
    before = simulate(clips, start, seed + _FRESH)
    after = simulate(clips, fit.options, seed + _FRESH)
    start_values = measure(truth, before.keypoints).values
    rows = []
    for name, label in LABELS.items():
        value, fitted = (part.values[name] for part in (fit.measured, fit.simulated))
        error = fit.error[name]
        mark = "*" if abs(fitted - value) / error > UNLIKE else ""
        setting = _number(getattr(fit.options, name)) if name in fit.names else "not told"
        numbers = (f"{_number(x)}" for x in (value, error, start_values[name]))
        rows.append([label, *numbers, f"{_number(fitted)}{mark}", f"{name}: {setting}"])
    parts = [check(truth, source) for source in (clips, before, after)]
    others = [[label, *(_number(part[label]) for part in parts)] for label in parts[0]]
    note = f"2D lengths over the apparent 1.7 m; * = more than {UNLIKE:g} standard errors off"
    header = ["statistic", "measured", "+-", "start", "fitted", "setting"]
    unfitted = grid(["not fitted", "measured", "start", "fitted"], others)
    return "\n\n".join([note, grid(header, rows), unfitted])


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
