"""Tests and measures ptri on this machine's GPU, and writes what it found into docs/gpu.md.

python scripts/gpu.py                   # on the GPU: make gpu
python scripts/gpu.py --device cpu      # what of it a CPU can do, in small
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from benchmark.speed.command_train import hardware

from ptri.errors import UserError, exit_status
from ptri.system import choose_device

ROOT = Path(__file__).resolve().parent.parent
MARKS = re.compile(r"(<!-- gpu-output -->\n).*?(<!-- /gpu-output -->)", re.DOTALL)
TEST_SECONDS, BENCHMARK_SECONDS = 270, 200  # at most, together less than eight minutes
CPU_FACTOR = 4  # times as long on a CPU


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = "cuda (another than the first: CUDA_VISIBLE_DEVICES) or cpu"
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help=text)
    parser.add_argument("--page", default=str(ROOT / "docs/gpu.md"), help="that is written into")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        print(f"gpu: torch {torch.__version__} sees no CUDA device here; nothing was done")
        return 0
    return exit_status(lambda: check(args.device, Path(args.page)))


def check(name: str, page: Path) -> int:
    """Runs the tests and the benchmark, and writes the page; whether both went well (0)."""
    device, start = choose_device(name), time.perf_counter()
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if not MARKS.search(text):
        raise UserError(f"{page}: has no lines <!-- gpu-output --> and <!-- /gpu-output -->")
    cuda = device.type == "cuda"
    chosen, small, factor = ("cuda", [], 1) if cuda else ("not slow", ["--quick"], CPU_FACTOR)
    command = ["-m", "pytest", "-q", "--no-header", "-m", chosen, "tests/test_gpu.py"]
    tests, failed = _run(command, factor * TEST_SECONDS)
    benchmark = ["scripts/benchmark.py", "train", "--device", name, "--seconds", "3", *small]
    measured, broken = _run(benchmark, factor * BENCHMARK_SECONDS)
    measured = measured.partition("\n\nwritten:")[0]
    day, minutes = time.strftime("%Y-%m-%d"), (time.perf_counter() - start) / 60
    found = f"{day}, {minutes:.1f} minutes, on: {hardware(device)}\n\n"
    found += f"```text\n{_summary(tests)}\n```\n\n```text\n{measured}\n```\n"
    page.write_text(MARKS.sub(lambda m: m[1] + found + m[2], text), encoding="utf-8")
    print(f"{tests}\n\n{measured}\n\nwritten: {page}")
    return int(failed or broken)


def _run(arguments: list[str], seconds: float) -> tuple[str, bool]:
    """What a command of Python says, and whether it failed."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            text=True,
            timeout=seconds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"COLUMNS": "100"},
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode()
        return f"{said}\nstopped after {seconds} s".strip(), True
    return done.stdout.strip(), done.returncode != 0


def _summary(tests: str) -> str:
    """The lines of pytest that name failures, and the last one."""
    lines = tests.splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([*failures, *lines[-1:]])


if __name__ == "__main__":
    sys.exit(main())
