"""How settings are declared and read: dataclasses with comments, whose values check themselves.

A section of settings is a frozen dataclass that inherits `Section`. `build` makes one from plain
values, as YAML files and command lines hold them. To read a whole configuration see `ptri.config`.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ptri.errors import UserError

MISSING = "???"  # the value of a setting that has to be given
# Settings of a part that reads them itself: a mapping, or the YAML file that holds it.
Table = dict[str, Any]
S = TypeVar("S", bound="Section")
_SIGNS = {"low": ">=", "above": ">", "high": "<="}
_WORDS = {"true": True, "false": False}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def number(default, low=-math.inf, high=math.inf, above=-math.inf, step=0):
    """A numeric setting: low <= value <= high, value > above, and a multiple of any step."""
    limits = {"low": low, "above": above, "high": high, "step": step}
    return field(default=default, metadata=limits)


class Section:
    """Checks the numeric settings' ranges; UserError names the key."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value, limit = getattr(self, item.name), item.metadata
            if not limit or not isinstance(value, (int, float)):
                continue
            inside = limit["low"] <= value <= limit["high"] and value > limit["above"]
            if not inside or (limit["step"] and value % limit["step"]):  # also NaN
                bounds = [f"{s} {limit[k]:g}" for k, s in _SIGNS.items() if math.isfinite(limit[k])]
                bounds += [f"a multiple of {limit['step']}"] if limit["step"] else []
                raise UserError(
                    f"{section_name(type(self))}.{item.name}: {value} is out of range; expected a "
                    f"number {' and '.join(bounds)}"
                )


def section_name(kind: type) -> str:
    """What a section is called in configurations."""
    return getattr(kind, "NAME", kind.__name__.removesuffix("Config").lower())


def build(
    kind: type[S],
    values: Mapping[str, Any],
    where: str = "",
    sources: Mapping[str, str] = types.MappingProxyType({}),
) -> S:
    """A section from plain values.

    Args:
        where: what messages start with: the file the values come from.
        sources: other such beginnings, by section.key.

    Raises:
        UserError: an unknown key (the nearest one is suggested); a value of the wrong type or out
            of range; none where one is needed.
    """
    name, known = section_name(kind), kinds_of(kind)
    checked = {item.name: MISSING for item in fields(kind) if item.default == MISSING}
    for key, value in {**checked, **values}.items():
        start = sources.get(f"{name}.{key}", where)
        if key not in known:
            close = nearest(str(key), known)
            did_you = f"; did you mean '{name}.{close}'?" if close else ""
            raise UserError(f"{start}unknown key '{name}.{key}'{did_you}")
        checked[key] = convert(value, known[key], f"{start}{name}.{key}")
    try:
        return kind(**checked)
    except UserError as error:  # a value out of range
        start = sources.get(str(error).partition(":")[0], where)
        raise UserError(f"{start}{error}") from None


@functools.cache
def kinds_of(kind: type) -> dict[str, Any]:
    """The type of every setting of a section."""
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def convert(value: Any, kind: Any, where: str) -> Any:
    """A value as the type of its setting wants it.

    Raises:
        UserError: it cannot be that; the message starts with ``where``.
    """
    origin, options = get_origin(kind), get_args(kind)
    number_or_text = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    if value == MISSING:
        key = where.rpartition(" ")[2]
        raise UserError(
            f"{where}: no value; set it in the YAML file or with {key}=... on the command line"
        )
    if kind is Any or (kind == Table and isinstance(value, dict)):
        return value
    if kind == Table and isinstance(value, str):
        return read_yaml(value)
    if origin in (Union, types.UnionType):  # X | None
        return None if value is None else convert(value, options[0], where)
    if origin is Literal:
        value = "off" if value is False else value  # YAML 1.1 reads the word as false
        if value in options:
            return value
        raise UserError(f"{where}: {value!r}; expected {' or '.join(map(str, options))}")
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        return origin(convert(item, options[0], f"{where}[{i}]") for i, item in enumerate(value))
    if kind is bool and str(value).lower() in _WORDS:
        return _WORDS[str(value).lower()]
    if kind is str and (number_or_text or isinstance(value, Path)):
        return str(value)
    if kind in (int, float) and number_or_text:
        try:
            result = kind(value)
            if kind is float or isinstance(value, str) or result == value:
                return result
        except (ValueError, OverflowError):
            pass
    expected = _NAMES.get(kind) or ("a list" if origin in (list, tuple) else "a section or a file")
    raise UserError(f"{where}: {value!r:.80}; expected {expected}")


def nearest(word: str, keys: Iterable[str]) -> str:
    """The nearest of some keys; empty where none is near."""
    return "".join(difflib.get_close_matches(word, list(keys), n=1, cutoff=0.6))


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last.

    Numbers that begin with 0 are text: YAML 1.1 would read the camera 00_10 as octal, which is 8.
    """

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice")
        return super().construct_mapping(node, deep)


_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_Loader.yaml_implicit_resolvers = {
    first: [("tag:yaml.org,2002:str", _OCTAL), *resolvers] if first == "0" else resolvers
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML text.

    Raises:
        UserError: it is none.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: str | Path) -> Table:
    """The keys and values of a YAML file; none where it is empty.

    Raises:
        UserError: unreadable, no YAML, or something else than keys and values.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, (dict, type(None))):
        raise UserError(f"{path}: expected sections such as 'run:' and 'data:', got {tree!r:.80}")
    return tree or {}
