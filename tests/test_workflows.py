"""What GitHub runs: the workflows are well formed, call commands that exist, and release only what was tried."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from odist import __version__

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def workflow(name: str) -> dict[str, Any]:
    content = yaml.load(WORKFLOWS[name].read_text(encoding="utf-8"), yaml.BaseLoader)  # `on` stays a word
    assert isinstance(content, dict)
    return content


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_make_command_of_a_workflow_exists(name: str) -> None:
    commands = [step["run"] for step in steps(name) if "run" in step and step["run"].startswith("make ")]
    assert commands
    for command in commands:
        planned = make("--dry-run", *command.split()[1:])
        assert planned.returncode == 0, planned.stderr


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_have_what_github_asks_for(name: str) -> None:
    content = workflow(name)
    assert content["on"]
    assert content["permissions"] == {"contents": "read"}  # more is given to single jobs
    for job in content["jobs"].values():
        assert job["runs-on"]
        assert {job.get("needs", "")} <= {"", *content["jobs"]}
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d[\d.]*", step["uses"]), "an action needs a version"


def test_all_supported_versions_of_python_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert project["requires-python"] == f">={named[0]}"
    assert workflow("ci")["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert workflow("release")["jobs"]["try"]["strategy"]["matrix"]["python"] == named
    lowest = workflow("ci")["jobs"]["lowest-versions"]["steps"]
    assert [step["with"]["python-version"] for step in lowest if "setup-python" in step.get("uses", "")] == named[:1]


def test_what_is_published_was_built_once_tried_and_released() -> None:
    jobs = workflow("release")["jobs"]
    assert [jobs[name].get("needs") for name in ("build", "try", "release", "publish")] == [
        None,
        "build",
        "try",
        "release",
    ]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}  # trusted publishing, no password
    assert "secrets." not in WORKFLOWS["release"].read_text(encoding="utf-8")


def test_a_tag_must_name_the_version() -> None:
    assert make("check-tag", f"TAG=v{__version__}").returncode == 0
    wrong = make("check-tag", "TAG=v0.0.99")
    assert wrong.returncode != 0
    assert f"v{__version__}" in wrong.stdout


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "odist/__init__.py"


@pytest.mark.slow
def test_the_smoke_test_of_a_wheel_passes_with_this_installation() -> None:
    odist = Path(sys.executable).with_name("odist")
    done = subprocess.run([ROOT / ".ci" / "smoke", odist], cwd="/", capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "mean_abs_difference" in done.stdout
