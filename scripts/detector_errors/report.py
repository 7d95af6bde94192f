"""A fit in words: the table, and the settings as YAML."""

from __future__ import annotations

import math

from detector_errors.bones import bone_ratio
from detector_errors.checks import check
from detector_errors.clips import Clips, simulate
from detector_errors.fit import Fit
from detector_errors.moments import LABELS, measure
from detector_errors.scene import describe
from ptri.config import GeneratedConfig
from ptri.structures import Detector

UNLIKE = 3.0  # standard errors: beyond it a row is marked
_FRESH = 1000  # seeds of the simulations shown lie this far from those fitted with


def settings_of(fit: Fit, clips: Clips) -> dict[str, object]:
    """The settings of the section ``generated``: errors as fitted; rounded."""
    options = fit.options
    found: dict[str, object] = {name: _rounded(getattr(options, name)) for name in fit.told}
    found["joint_noise"] = [round(value, 3) for value in options.joint_noise]
    found["joint_stated"] = [round(value, 3) for value in options.joint_stated]
    found["definition_mean"] = [[round(v, 1) + 0.0 for v in r] for r in options.definition_mean]
    return found | missing_rates(clips)


def detector_of(fit: Fit, clips: Clips, frame_worth: float) -> Detector:
    """What the posterior needs to know of the detector: bones as measured, the rest as fitted."""
    options = fit.options
    ratio = bone_ratio(clips.keypoints, clips.moving_cameras(), clips.joints)
    return Detector(
        tuple(round(value, 3) for value in ratio.tolist()),
        tuple(round(options.overstate * value, 3) for value in options.joint_stated),
        frame_worth,
    )


def missing_rates(clips: Clips) -> dict[str, float]:
    """Shares of the joints inside the images that the detector leaves out."""
    scene = describe(clips)
    gone = clips.keypoints.xy.isnan().any(-1) & clips.inside
    lost = (gone | ~clips.inside).all(-1) & clips.inside.any(-1)  # (B, T, V)
    seen = clips.inside & ~lost.unsqueeze(-1)
    single = float(gone[seen & ~scene.hidden].double().mean())
    hidden = seen & scene.hidden
    behind = float(gone[hidden].double().mean()) if hidden.any() else 0.0
    return {
        "missing_rate": _rounded(single),
        "missing_hidden_rate": _rounded(max(1 - (1 - behind) / max(1 - single, 1e-9), 0.0)),
        "missing_view_rate": _rounded(float(lost.double().mean())),
    }


def to_yaml(settings: dict[str, dict[str, object]], comment: str) -> str:
    """A file of these settings alone, each on a line."""
    lines = [f"# {line}" for line in comment.splitlines()]
    for section, values in settings.items():
        lines.append(f"{section}:")
        for name, value in values.items():
            if name == "definition_mean":
                lines += [f"  {name}:"] + [f"    - {row}" for row in value]
            else:
                lines.append(f"  {name}: {value}")
    return "\n".join(lines) + "\n"


def table(fit: Fit, clips: Clips, start: GeneratedConfig, seed: int) -> str:
    """Measured beside simulated, before and after the fit; then what was not fitted."""
    scene = describe(clips)
    before = simulate(clips, start, seed + _FRESH)
    after = simulate(clips, fit.options, seed + _FRESH)
    known = measure(scene, before.keypoints).values
    rows = [_HEAD]
    for name, label in LABELS.items():
        value, error = fit.measured.values[name], fit.error[name]
        off = abs(fit.simulated.values[name] - value) / error
        mark = "*" if off > UNLIKE else " "
        setting = _number(getattr(fit.options, name)) if name in fit.told else "not told"
        rows.append(
            f"{label:54}{_number(value):>9} +-{_number(error):>8}{_number(known[name]):>10}"
            f"{_number(fit.simulated.values[name]):>9}{mark}  {name}: {setting}"
        )
    rows += ["", f"{'not fitted':54}{'measured':>9}{'':10}{'start':>10}{'fitted':>9}"]
    parts = [check(scene, each) for each in (clips, before, after)]
    for label in parts[0]:
        first, *others = (_number(part[label]) for part in parts)
        rows.append(f"{label:54}{first:>9}{'':10}{others[0]:>10}{others[1]:>9}")
    return "\n".join(rows)


_HEAD = (
    f"{'statistic (2D lengths over the apparent 1.7 m)':54}{'measured':>9} +-{'':8}{'start':>10}"
    f"{'fitted':>9}   setting; * = more than {UNLIKE:g} standard errors off"
)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
