"""Dependencies point one way, as docs/architecture.md says."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A module or package of ptri imports only from lines above its own, or from its own. Packages that
# share a line do not know each other.
LAYERS = [
    ["errors", "structures"],
    ["skeleton", "checkpoint", "system", "fields"],
    ["config_sections"],
    ["config"],
    ["geometry"],
    ["posterior"],
    ["verdict"],
    ["people", "data"],
    ["render", "models"],
    ["rig", "export", "detectors"],
    ["evaluation"],
    ["recordings", "training"],
]


LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}


def part_of(module):
    """Name of the unit a module belongs to: its top module or package inside ptri."""
    return module.split(".")[1] if module.count(".") else ""


def imported(path):
    """Modules of ptri that a file imports, wherever in the file, and the lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno
            if node.module == "ptri":
                yield from ((f"ptri.{alias.name}", node.lineno) for alias in node.names)


def violations(root):
    """Every import in ``root/ptri`` against the direction of the layers, in words."""
    found = []
    scripts = {script.stem for script in root.glob("*.py")}
    for path in sorted((root / "ptri").rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        importer = part_of(module)
        for name, line in imported(path):
            other = part_of(name) if name.split(".")[0] == "ptri" else ""
            # A part that is in no layer has a KeyError: add it to LAYERS.
            inside = not other or not importer or other == importer
            upwards = not inside and LEVEL[other] >= LEVEL[importer]
            if upwards or name.startswith(".") or name.split(".")[0] in scripts:
                found.append(f"{module}:{line}: imports {name}")
    return found


def test_imports_point_one_way():
    assert violations(ROOT) == []


def test_the_page_shows_the_same_order():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = page.split("```text\n")[2].split("```")[0].splitlines()
    assert [line.split(", ") for line in lines[:-1]] == LAYERS


def test_planted_violations_are_found(tmp_path):
    for name, text in {
        "ptri/__init__.py": "",
        "ptri/geometry/__init__.py": "",
        "ptri/geometry/a.py": "def f():\n    from ptri.training.engine import fit\n",
        "ptri/geometry/good.py": "from ptri.structures import tree_map\nimport ptri.geometry.a\n",
        "ptri/data/__init__.py": "",
        "ptri/data/b.py": "from ptri.models import lifter\nfrom .labels import Labels\n",
        "ptri/config.py": "from ptri import rig\nimport numpy\n",
        "ptri/training/engine.py": "import ptri.training.task2d\nfrom ptri.geometry import a\n",
        "ptri/rig/estimate.py": "import ptri.training.engine\n",
        "ptri/evaluation/metrics.py": "import train2d\n",
        "train2d.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    places = ["config:1", "data.b:1", "data.b:2", "geometry.a:2", "metrics:1", "estimate:1"]
    found = violations(tmp_path)
    assert len(found) == len(places), found
    for place in places:
        assert any(place in line for line in found), (place, found)


def test_no_star_imports_and_no_standard_names():
    for path in sorted((ROOT / "ptri").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), path
        assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names, path


@pytest.mark.parametrize("script", ["train2d.py", "train3d.py", "infer3d.py"])
def test_threads_are_told_to_wait_before_torch_is_loaded(script):
    lines = (ROOT / script).read_text(encoding="utf-8").splitlines()
    told = next(n for n, line in enumerate(lines) if "OMP_WAIT_POLICY" in line)
    loads = [n for n, line in enumerate(lines) if line.startswith(("import torch", "from ptri"))]
    assert told < min(loads)
