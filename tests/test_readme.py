"""What README.md and the other pages name exists: files, functions, settings, flags, commands.

Their examples parse, and those of README.md run.
"""

import ast
import functools
import json
import pkgutil
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
FOLDERS = ("configs", "scripts", "data", "docs", "checkpoints", "ptri", "tests")
FILES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "checkpoints" / "README.md"]
# Where else a script's options are, and how its subcommands look there.
MORE_SOURCES = {
    "benchmark.py": (ROOT / "scripts/benchmark", "command*.py"),
    **dict.fromkeys(("train2d.py", "train3d.py"), (ROOT / "ptri/training", "run.py")),
}
SUBCOMMANDS = {
    **{f"scripts/prepare_{name}.py": r'add_parser\("(\w+)"' for name in ("h36m", "panoptic")},
    "scripts/benchmark.py": r'"([\w-]+)": command_',
}


@functools.cache
def read(path):
    return path.read_text(encoding="utf-8")


# docs/decisions.md keeps the names of the time of each decision.
PAGES = {str(p.relative_to(ROOT)): read(p) for p in FILES if p.name != "decisions.md"}
README = PAGES["README.md"]
SECTIONS = {**config.SECTIONS, "render": RenderConfig}
KEYS = {name: {key.name for key in fields(section)} for name, section in SECTIONS.items()}
PARSERS = {"json": json.loads, "yaml": yaml.safe_load, "python": ast.parse}
SCRIPTS = {
    path.name: path
    for folder in (ROOT / "tests", ROOT / "ptri", ROOT / "scripts", ROOT)
    for path in (folder.glob("*.py") if folder == ROOT else folder.rglob("*.py"))
}
# Made by the reader, or by the commands of the pages.
MADE = tuple(f"data/{name}" for name in ("human36m", "panoptic", "rendered", "single", "test"))
MADE += ("data/coco", "data/photos", "configs/errors_mine.yaml")


def blocks(text):
    """(language, content) of every fenced block."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def without_blocks(text):
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code(text):
    """All code: fenced blocks and inline spans."""
    spans = re.findall(r"`([^`]+)`", without_blocks(text))
    return "\n".join([*(content for _, content in blocks(text)), *spans])


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
    place = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    if place is None or not re.search(r"python$|torchrun$", words[0]):
        return None
    rest = words[place + 1 :]
    flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
    overrides = [word for word in rest if re.match(r"\w+\.\w+=", word)]
    return words[place], [w for w in rest if w not in overrides and w[:2] != "--"], overrides, flags


def wrong_paths(text):
    paths = re.findall(rf"(?<![\w./])(?:{'|'.join(FOLDERS)})/[\w./-]+", text)
    for path in sorted({path.rstrip("./") for path in paths}):
        if not path.startswith(MADE) and not (ROOT / path).exists():
            yield f"no such file: {path}"
    for name in sorted(set(re.findall(r"(?<![\w./-])(\w+\.py)\b", text)) - set(SCRIPTS)):
        yield f"no such file: {name}"
    for link in re.findall(r"(?<!!)\[[^]]*\]\(([\w./-]+)(?:#[\w-]*)?\)", text):
        if not (ROOT / link).exists() and not (ROOT / "docs" / link).exists():
            yield f"no such page: {link}"


def wrong_names(text):
    """Names below ptri, and functions beside the file that they are said to be in."""
    for name in sorted(set(re.findall(r"\bptri(?:\.\w+)+", code(text)))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            yield f"no such name: {name}"
    text = without_blocks(text)
    pairs = re.findall(r"`([\w./]+\.py)`, `([\w.]+)`", text)
    pairs += [(file, name) for name, file in re.findall(r"`([\w.]+)` \(`([\w./]+\.py)`", text)]
    for file, name in sorted(set(pairs)):
        path, last = SCRIPTS.get(file, ROOT / file), name.rpartition(".")[2]
        is_code = "." not in name or name[0].isupper()  # else a setting or a file
        if is_code and path.is_file() and not re.search(rf"(def|class) {last}\b", read(path)):
            yield f"no {name} in {file}"


def wrong_keys(text):
    pattern = rf"(?<![\w./-])({'|'.join(KEYS)})\.(\w+)\b(?!/)"
    for section, key in sorted(set(re.findall(pattern, text))):
        if key not in KEYS[section] and key not in ("json", "yaml", "toml", "csv", "py", "txt"):
            yield f"no such key: {section}.{key}"


def wrong_targets(text):
    rules = re.findall(r"^([\w -]+):", read(ROOT / "Makefile"), re.MULTILINE)
    targets = set(" ".join(rules).split())
    for target in re.findall(r"\bmake ([\w-]+)", code(text)):
        if target not in targets:
            yield f"no such target: make {target}"


def source_of(script):
    """Text that holds every flag of a script in double quotes."""
    folder, pattern = MORE_SOURCES.get(script.name, (ROOT, ""))
    text = "".join(map(read, [script, *(sorted(folder.rglob(pattern)) if pattern else [])]))
    if script.name == "render_people.py":
        text += "".join(f'"--{key.name.replace("_", "-")}"' for key in fields(RenderSettings))
    return text


def wrong_commands(text):
    """Configurations that do not load, flags and subcommands that a script does not have."""
    for script, rest, overrides, flags in filter(None, map(python_command, commands(text))):
        path = ROOT / script
        source = source_of(path) if path.is_file() else ""
        yield from (f"{script} has no {flag}" for flag in flags if f'"{flag}"' not in source)
        if script in SUBCOMMANDS and rest[0] not in re.findall(SUBCOMMANDS[script], source):
            yield f"{script} has no command {rest[0]}"
        files = [word for word in rest if word.endswith(".yaml")]
        try:
            if path.parent == ROOT:
                config.load(ROOT / files[0], [*files[1:], *overrides])
            elif script == "scripts/render_people.py" and files:
                settings_from(yaml.safe_load(read(ROOT / files[0])))
        except UserError as error:
            yield f"{script} {shlex.join([*rest, *overrides])}: {error}"


def wrong_flags(text):
    """Flags in the running text that no script has."""
    scripts = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    sources = "".join(map(source_of, scripts))
    spans = " ".join(re.findall(r"`([^`\n]+)`", without_blocks(text)))
    spans = re.sub(r"torchrun --[\w-]+", "", spans)
    flags = re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", spans)
    yield from (f"no script has {flag}" for flag in flags if f'"{flag}"' not in sources)


CHECKS = (wrong_paths, wrong_names, wrong_keys, wrong_targets, wrong_commands, wrong_flags)


def problems(text):
    expected = re.sub(r"^```console\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [problem for check in CHECKS for problem in check(expected)]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Paths in commands and settings are relative to the repository."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_exists(page):
    retired = {f"no such key: {name}" for name in config.RETIRED}
    found = problems(PAGES[page])
    if page == "CHANGELOG.md":  # names the settings of before
        assert set(found) & retired
        found = [problem for problem in found if problem not in retired]
    assert found == []


def test_planted_mistakes_are_found():
    planted = """
`configs/demo_4d.yaml`, `scripts/nothing.py`, `train4d.py`, `train.epocs`, `--overwrote`,
`make tea`, `ptri.rig.estimate.nothing`, `ptri/rig/estimate.py`, `nothing`,
[page](nowhere.md) are wrong,
`configs/recording.yaml`, `docs/decisions.md`, `recording.yaml`, `train.epochs`,
`ptri.estimate_rig`, `solve` (`ptri/rig/estimate.py`), [page](docs/decisions.md) right.
```bash
python train2d.py configs/demo_2d.yaml train.lr=quick --resum
python scripts/prepare_h36m.py chek data/human36m   # a comment
python scripts/benchmark.py scale
python infer3d.py configs/h36m_infer.yaml
python scripts/render_people.py --out data/rendered --shard-sizes 9
```
"""
    found = problems(planted)
    named = [
        *("configs/demo_4d.yaml", "scripts/nothing.py", "train4d.py", "train.epocs", "--overwrote"),
        *("make tea", "train.lr", "--resum", "chek", "data.root: no value", "--shard-sizes"),
        *("command scale", "ptri.rig.estimate.nothing", "no nothing in", "nowhere.md"),
    ]
    for word in named:
        assert any(word in problem for problem in found), (word, found)
    assert len(found) == len(named), found


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_parse(page):
    text = PAGES[page]
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(blocks(text))
    for language, content in blocks(text):
        assert language in {*PARSERS, "bash", "console", "text"}, content
        if language in PARSERS:
            PARSERS[language](content)


def test_the_readme_is_short_and_whole():
    assert len(README.split()) <= 2000
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    missing = [path for path in pictures if not (ROOT / path).is_file()]
    marked = re.findall(r"<!-- ([\w-]+) -->\n```text\n.+?```\n<!-- /\1 -->", README, re.DOTALL)
    assert (missing, marked) == ([], ["demo-output", "test-output"])
    assert any(python_command(words) for words in commands(README))
    packages = [
        p.parent.name for part in ("ptri", "scripts") for p in (ROOT / part).rglob("__init__.py")
    ]
    for name in [*FOLDERS, *packages]:
        assert re.search(rf"^ *{name}/", README, re.MULTILINE), f"{name} is not in the tree"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    project = read(ROOT / "pyproject.toml")
    assert f'version = "{citation["version"]}"' in project
    assert citation["license"] in project and citation["authors"]


@pytest.mark.parametrize("page", ["README.md", "docs/recordings.md"])
def test_the_camera_file_can_be_read(page, tmp_path):
    (example,) = [content for language, content in blocks(PAGES[page]) if language == "json"]
    (tmp_path / "calibration.json").write_text(example)
    cameras = read_cameras(tmp_path / "calibration.json")
    assert [camera.name for camera in cameras][:2] == ["cam01", "cam02"]
    assert cameras[0].K[0].tolist() == [1681.2, 0, 533.0] and cameras[0].K_std == 0.01
    assert any(camera.group == "iPhone 13" and camera.dist.any() for camera in cameras)


def test_the_python_example_runs(capsys):
    (example,) = [content for language, content in blocks(README) if language == "python"]
    given = {}
    exec(compile(example, "README.md", "exec"), given)
    rig = given["rig"]
    assert capsys.readouterr().out.startswith("True accepted\n")
    assert rig.accepted and rig.joints3d.shape == rig.body.joints3d.shape == (1, 17, 3)
    error = rotation_angle(rig.R.mT @ given["scene"].cameras.R[0].double())
    assert error.max() < 0.1  # rad; found: 0.058
    shapes = re.findall(r"#.*?(\(\d[\d, ]*\))", example)
    assert shapes[:2] == [str(tuple(given["xy"].shape)), str(tuple(given["K"].shape))]


def test_the_error_shown_is_the_error_given():
    page = PAGES["docs/configuration.md"]
    (shown,) = [content for language, content in blocks(page) if language == "console"]
    _, (path,), overrides, _ = python_command(next(commands(f"```console\n{shown}```\n")))
    with pytest.raises(UserError) as caught:
        config.load(ROOT / path, overrides)
    assert shown.splitlines()[1:] == [f"error: {caught.value}"]
