# SPDX-License-Identifier: Apache-2.0
"""scripts/gpu_check.sh with stubs in place of all commands: which parts run, what it answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.sh"
ALL = ["build", "conformance", "pytest", "sanitizer", "bench", "example"]

# Writes down how it was called.  Standard input is a program: it is run where it is the summary.
STUB = """#!/bin/bash
echo "$(basename "$0") $*" >>"$CALLS"
[[ "$*" != - ]] || exit 0
[[ $1 != - ]] || exec "$REAL" "$@"
[[ -z ${SLOW:-} || "$*" != *"$SLOW"* ]] || sleep 30
[[ -z ${BROKEN:-} || "$(basename "$0") $*" != *"$BROKEN"* ]] || exit 1
"""
COMMANDS = ("python3", "cmake", "ctest", "compute-sanitizer", "nvidia-smi", "nvcc")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def check(tmp_path):
    """Runs a copy of the script beside nothing; its status, the summary's parts and the calls."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name in COMMANDS:
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    tree = tmp_path / "tree"
    (tree / "scripts").mkdir(parents=True)
    (tree / "benchmarks").mkdir()
    (tree / "benchmarks" / "gpu.py").touch()
    (tree / "build/gpu/site/torch_deeppcr/lib").mkdir(parents=True)
    (tree / "build/gpu/site/torch.py").write_text('__version__ = "of a stub"\n')
    shutil.copy(SCRIPT, tree / "scripts")

    def call(*parts: str, without: str = "", **variables: str) -> tuple[int, dict, str]:
        if without:
            (stubs / without).unlink()
        calls = tmp_path / "calls"
        calls.write_text("")
        env = {
            **{"PATH": f"{stubs}:{os.environ['PATH']}", "PYTHON": str(stubs / "python3")},
            **{"CALLS": str(calls), "REAL": sys.executable, "CUDA_ARCH": "90", **variables},
        }
        command = ["bash", str(tree / "scripts" / SCRIPT.name), str(tmp_path / "out"), *parts]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        summary = tmp_path / "out" / "summary.json"
        found = json.loads(summary.read_text())["parts"] if summary.is_file() else {}
        return done.returncode, {n: p["result"] for n, p in found.items()}, calls.read_text()

    return call


def test_all_parts_but_the_demo_run_in_their_order(check):
    status, parts, calls = check()
    assert status == 0 and parts == dict.fromkeys(ALL, "passed") and list(parts) == ALL
    for tool in ("memcheck", "synccheck", "initcheck", "racecheck"):
        assert f"compute-sanitizer --tool {tool} " in calls
    example = next(line for line in calls.splitlines() if "resnet1024/train.py" in line)
    assert "--device cuda" in example and "compiled" not in example and "--depth 256" in example


def test_parts_can_be_chosen_with_their_times(check):
    status, parts, calls = check("demo", "bench:30")
    assert status == 0 and parts == {"bench": "passed", "demo": "passed"}
    assert "--seconds 20" in calls and "--depth" not in calls and "ctest" not in calls


@pytest.mark.parametrize(
    ("broken", "part"), [("racecheck", "sanitizer"), ("ctest", "conformance"), ("gpu.py", "bench")]
)
def test_a_part_that_fails_fails_the_whole_and_the_next_one_runs(check, broken, part):
    status, parts, _ = check(part, "example", BROKEN=broken)
    assert status == 1 and parts == {part: "failed", "example": "passed"}


def test_a_part_that_is_too_slow(check):
    status, parts, _ = check("bench:1", "example", SLOW="gpu.py")
    assert status == 1 and parts == {"bench": "timeout", "example": "passed"}


def test_what_is_not_there_is_skipped(check):
    if shutil.which("compute-sanitizer"):
        pytest.skip("compute-sanitizer is installed")
    status, parts, _ = check("sanitizer", without="compute-sanitizer")
    assert status == 0 and parts == {"sanitizer": "skipped"}


@pytest.mark.parametrize("given", ["nothing", "bench:soon", "--help"])
def test_mistakes(check, given):
    status, parts, calls = check(given)
    assert status == 2 and not parts and not calls
