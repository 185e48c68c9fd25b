"""A package that adds a task and a model with options, choices and presets of its own, installed beside odist."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MOONS = ROOT / "tests" / "data" / "moons"
ENTRY_POINTS = "[odist.tasks]\nmoons = moons:Moons\n[odist.models]\ntiny = moons:Tiny\n"


def install(site: Path, *, conf: bool) -> Path:
    """Lay the package out as pip would; with its folder of choices or without."""
    shutil.copytree(MOONS, site, ignore=None if conf else shutil.ignore_patterns("moons_conf"))
    info = site / "moons-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moons\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS + ("[odist.conf]\nmoons = moons_conf\n" if conf else ""))
    return site


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp("bare") / "site", conf=False)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp("full") / "site", conf=True)


def odist(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", "from odist.cli.main import main; main()", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def test_entry_points_alone_make_a_task_and_a_model_trainable(bare: Path, tmp_path: Path) -> None:
    typed = (
        "task=moons",
        "scale=smoke",
        "task.noise=0.2",
        "model.hidden=5",
        "algorithm=codistill",
        "algorithm.burn_in=128",
    )
    done = odist(bare, "train", *typed, "launch=local", "run.dir=run", "run.progress=false", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["task"]["noise"], config["model"]["name"], config["model"]["hidden"]) == (0.2, "tiny", 5)
    assert (config["optim"]["name"], config["train"]["batch"]) == ("sgd", 32)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [group["taught"] for group in results["groups"]] == [True, True]
    evaluated = odist(bare, "eval", "run", "--json", cwd=tmp_path)
    assert json.loads(evaluated.stdout)["log_loss"] == pytest.approx(results["metrics"]["log_loss"])


def test_its_keys_are_checked_explained_and_completed(bare: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = odist(bare, "train", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        return done.stderr

    assert "task.noise=-1.0: expected a number more than 0" in said("task=moons", "task.noise=-1")
    assert "model.hidden" in said("task=moons", "model.hiden=3")
    assert "moons" in said("task=moon")
    help_page = odist(bare, "train", "task=moons", "--help", cwd=tmp_path).stdout
    assert "standard deviation of a point from its moon" in help_page
    assert "units of the layer" in help_page
    code = "from odist.cli.completion import candidates\nfrom odist.config.folder import config_folders\n"
    code += "print(candidates('task=', folders=config_folders()), candidates('model.hid', folders=config_folders()))"
    path = os.pathsep.join([str(bare), str(ROOT)])
    shown = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert "task=moons" in shown.stdout


def test_its_folder_of_choices_is_found_without_a_flag(full: Path, tmp_path: Path) -> None:
    typed = ("task=moons", "algorithm=trio", "run.dir=run", "run.progress=false")
    done = odist(full, "train", *typed, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["num_groups"], config["algorithm"]["name"]) == (3, "trio")
    assert (config["train"]["batch"], config["train"]["passes"]) == (16, 2.0)


def test_a_run_of_a_package_that_is_gone_is_named(bare: Path, tmp_path: Path) -> None:
    assert odist(bare, "train", "task=moons", "scale=smoke", "run.dir=run", cwd=tmp_path).returncode == 0
    gone = odist(tmp_path / "nowhere", "eval", "run", cwd=tmp_path)
    assert gone.returncode == 2
    assert "task.name=moons" in gone.stderr
    assert odist(tmp_path / "nowhere", "runs", ".", cwd=tmp_path).returncode == 0
