"""The workflows call what is there: make's targets, scripts, the Pythons that the package takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.source_tree import ROOT

FOLDER = ROOT / ".github" / "workflows"
if not FOLDER.is_dir():
    pytest.skip("the tests run outside the checkout; needed: .github/workflows/", allow_module_level=True)

FILES = sorted(FOLDER.glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_are_there(path: Path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        for target in re.findall(r"\bmake ([\w-]+)", command):
            assert target in targets, f"{path.name}: no target {target}"
        if command.startswith("."):
            assert (ROOT / command).is_file(), f"{path.name}: {command} is not there"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_jobs_end_and_may_only_read(path: Path):
    """A job without a limit holds a runner for six hours; what publishes asks for its right itself."""
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert whole["permissions"] == {"contents": "read"}
    for name, job in whole["jobs"].items():
        assert job.get("timeout-minutes", 360) <= 120, f"{path.name}: {name} has no limit"
        for step in job["steps"]:
            assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v1")), f"{path.name}: {step}"


def test_pythons_are_those_that_the_package_takes():
    least = re.search(r'requires-python = ">=(3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    for name, job in (("ci", "test"), ("wheels", "wheel")):
        pythons = jobs(FOLDER / f"{name}.yml")[job]["strategy"]["matrix"]["python"]
        assert least is not None and pythons[0] == least[1]
        numbers = [int(p.partition(".")[2]) for p in pythons]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
