"""What the sections of the configuration are made of: numbers with ranges that check themselves."""

from __future__ import annotations

import math
from dataclasses import field, fields

from ptri.errors import UserError


def number(default, low=-math.inf, high=math.inf, above=None):
    """A numeric field: low <= value <= high, and value > above where that is given."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


class Section:
    """Checks the numeric fields' ranges; UserError names the key."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").removesuffix("Settings").lower()
        for item in fields(self):  # type: ignore[arg-type]
            value, limit = getattr(self, item.name), item.metadata
            if not limit or value is None or isinstance(value, str):
                continue
            above = limit["above"]
            inside = limit["low"] <= value <= limit["high"] and (above is None or value > above)
            if not inside:  # also catches NaN
                bounds = [f">= {limit['low']:g}"] if math.isfinite(limit["low"]) else []
                bounds += [f"> {above:g}"] if above is not None else []
                bounds += [f"<= {limit['high']:g}"] if math.isfinite(limit["high"]) else []
                raise UserError(
                    f"{section}.{item.name}: {value} is out of range; expected a number "
                    f"{' and '.join(bounds)}"
                )
