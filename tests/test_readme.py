"""What README.md names exists: files, keys, flags, make targets; its examples parse."""

import ast
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from ptri import config
from ptri.errors import UserError
from ptri.geometry.rotations import rotation_angle
from ptri.recordings.intrinsics import read_cameras
from ptri.render.settings import RenderConfig, RenderSettings, settings_from

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTIONS = {**config.SECTIONS, "render": RenderConfig}
KEYS = {name: {key.name for key in fields(section)} for name, section in SECTIONS.items()}
PARSERS = {"json": json.loads, "yaml": yaml.safe_load, "python": ast.parse}
# Made by the reader, or by the commands of the README.
MADE = ("data/human36m", "data/rendered", "runs/", "outputs/", "recording/", "path/to/")


def blocks(text):
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def code(text):
    """All code: fenced blocks and inline spans."""
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*(content for _, content in blocks(text)), *re.findall(r"`([^`]+)`", rest)])


def commands(text):
    """The words of every command in bash and console blocks, without comments."""
    for language, content in blocks(text):
        lines = content.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        if language in ("bash", "console"):
            yield from filter(None, (shlex.split(line, comments=True) for line in lines))


def python_command(words):
    """(script, subcommand and files, overrides, flags), or None for other programs."""
    scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
    if not scripts or words[0] not in ("python", "torchrun"):
        return None
    script, rest = words[scripts[0]], words[scripts[0] + 1 :]
    flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
    overrides = [word for word in rest if re.match(r"\w+\.\w+=", word)]
    return script, [w for w in rest if w not in overrides and w[:2] != "--"], overrides, flags


def wrong_paths(text):
    paths = re.findall(
        r"(?<![\w./])(?:configs|scripts|data|docs|checkpoints|ptri|tests)/[\w./-]+", text
    )
    paths += re.findall(r"(?<![\w./-])(\w+\.py)\b", text)
    for path in sorted({path.rstrip("./") for path in paths}):
        known = path.startswith(MADE) or (ROOT / path).exists()
        if not known and not (ROOT / "scripts" / path).exists():
            yield f"no such file: {path}"


def wrong_keys(text):
    pattern = rf"(?<![\w./-])({'|'.join(KEYS)})\.(\w+)\b(?!/)"
    for section, key in sorted(set(re.findall(pattern, text))):
        if key not in KEYS[section] and key not in ("json", "yaml", "toml", "csv", "py", "txt"):
            yield f"no such key: {section}.{key}"


def wrong_targets(text):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"\bmake ([\w-]+)", code(text)):
        if target not in targets:
            yield f"no such target: make {target}"


def source_of(script):
    """Text that holds every flag of a script in double quotes."""
    text = script.read_text(encoding="utf-8")
    if script.name == "render_people.py":
        text += "".join(f'"--{key.name.replace("_", "-")}"' for key in fields(RenderSettings))
    if script.name in ("train2d.py", "train3d.py"):
        text += (ROOT / "ptri" / "training" / "run.py").read_text(encoding="utf-8")
    if script.name == "benchmark.py":
        commands = sorted((ROOT / "scripts" / "benchmark").rglob("command_*.py"))
        text += "".join(path.read_text(encoding="utf-8") for path in commands)
    return text


def wrong_commands(text):
    """Configurations that do not load, flags and subcommands that a script does not have."""
    for words in commands(text):
        parts = python_command(words)
        if parts is None:
            continue
        script, rest, overrides, flags = parts
        path = ROOT / script
        source = source_of(path) if path.is_file() else ""
        yield from (f"{script} has no {flag}" for flag in flags if f'"{flag}"' not in source)
        if script == "scripts/prepare_h36m.py" and f'add_parser("{rest[0]}"' not in source:
            yield f"{script} has no command {rest[0]}"
        if rest and rest[0].endswith(".yaml"):
            try:
                if path.parent == ROOT:
                    config.load(ROOT / rest[0], overrides)
                else:
                    settings_from(yaml.safe_load((ROOT / rest[0]).read_text(encoding="utf-8")))
            except UserError as error:
                yield f"{shlex.join(words)}: {error}"


def wrong_flags(text):
    """Flags in the running text that no script has."""
    scripts = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    sources = "".join(map(source_of, scripts))
    running = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = " ".join(re.findall(r"`([^`\n]+)`", running))
    for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", spans):
        if f'"{flag}"' not in sources:
            yield f"no script has {flag}"


def problems(text):
    expected = re.sub(r"^```console\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    expected = re.sub(r"!\[[^]]*\]\([^)]*\)", "", expected)  # test_nothing_is_left_to_fill_in
    checks = (wrong_paths, wrong_keys, wrong_targets, wrong_commands, wrong_flags)
    return [problem for check in checks for problem in check(expected)]


def test_what_is_named_exists():
    assert problems(README) == []


def test_planted_mistakes_are_found():
    planted = """
`configs/demo_4d.yaml`, `scripts/nothing.py`, `train4d.py`, `train.epocs`, `--overwrote`, `make tea`
are wrong, `configs/recording.yaml`, `docs/decisions.md`, `recording.yaml`, `train.epochs` right.
```bash
python train2d.py configs/demo_2d.yaml train.lr=quick --resum
python scripts/prepare_h36m.py chek data/human36m   # a comment
python infer3d.py configs/h36m_infer.yaml
python scripts/render_people.py --out data/rendered --shard-sizes 9
```
"""
    found = problems(planted)
    named = [
        "configs/demo_4d.yaml",
        "scripts/nothing.py",
        "train4d.py",
        "train.epocs",
        "--overwrote",
    ]
    named += ["make tea", "train.lr", "--resum", "chek", "data.root: no value", "--shard-sizes"]
    for word in named:
        assert any(word in problem for problem in found), (word, found)
    assert len(found) == len(named), found


def test_code_blocks_parse():
    assert len(re.findall(r"^```", README, re.MULTILINE)) == 2 * len(blocks(README))
    for language, content in blocks(README):
        assert language in {*PARSERS, "bash", "console", "text"}, content
        if language in PARSERS:
            PARSERS[language](content)
    assert any(python_command(words) for words in commands(README))


def test_the_camera_file_can_be_read(tmp_path):
    (example,) = [content for language, content in blocks(README) if language == "json"]
    (tmp_path / "calibration.json").write_text(example)
    cameras = read_cameras(tmp_path / "calibration.json")
    assert [camera.name for camera in cameras] == ["cam01", "cam02"]
    assert cameras[1].K[0].tolist() == [1679.0, 0, 540.0] and not cameras[1].dist.any()


def test_the_python_example_runs(capsys):
    (example,) = [content for language, content in blocks(README) if language == "python"]
    given = {}
    exec(compile(example, "README.md", "exec"), given)
    rig = given["rig"]
    assert capsys.readouterr().out.startswith("True accepted\n")
    assert rig.accepted and rig.joints3d.shape == (1, 17, 3)
    error = rotation_angle(rig.R.mT @ given["scene"].cameras.R[0].double())
    assert error.max() < 0.1  # rad; found: 0.058
    shapes = re.findall(r"#.*?(\(\d[\d, ]*\))", example)
    assert shapes[:2] == [str(tuple(given["xy"].shape)), str(tuple(given["K"].shape))]


def test_the_error_shown_is_the_error_given():
    (shown,) = [content for language, content in blocks(README) if language == "console"]
    _, (path,), overrides, _ = python_command(next(commands(f"```console\n{shown}```\n")))
    with pytest.raises(UserError) as caught:
        config.load(ROOT / path, overrides)
    assert shown.splitlines()[1:] == [f"error: {caught.value}"]


def test_nothing_is_left_to_fill_in():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    missing = [path for path in pictures if not (ROOT / path).is_file()]
    empty = re.findall(r"<!-- [\w-]+ -->\n```text\n```|<!-- [\w-]+ -->\n*(?=#)", README)
    assert (missing, empty) == ([], [])
