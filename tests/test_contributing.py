"""The example of CONTRIBUTING.md, applied as it stands to a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    "conf/algorithm/elastic.yaml",
    "odist/strategies/__init__.py",
    "odist/strategies/elastic.py",
    "tests/test_resume.py",
]


def typed(*words: str, copy: Path) -> str:
    """Type a command with the sources of the copy; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "160"}  # help in whole lines
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_strategy_with_an_option_is_four_files(tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    for name in ("odist", "conf", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [difference] = re.findall(r"^```diff\n(.*?)^```$", page, re.M | re.S)
    assert re.findall(r"^\+\+\+ b/(.*)$", difference, re.M) == FILES
    subprocess.run(["git", "apply", "-"], cwd=copy, input=difference, text=True, check=True)

    odist = ("-c", "from odist.cli.main import main; main()")
    run = ("algorithm=elastic", "scale=smoke", "train.max_examples=800", "run.progress=false")
    typed(*odist, "train", *run, "algorithm.elasticity=0.5", "run.dir=run", copy=copy)
    config = yaml.safe_load((copy / "run" / "config.yaml").read_text())
    assert (config["workers"], config["algorithm"]["elasticity"]) == (4, 0.5)
    assert json.loads((copy / "run" / "results.json").read_text())["metrics"]["log_loss"] < 0.7
    assert "pull of the workers' mean on their center" in typed(
        *odist, "train", "algorithm=elastic", "--help", copy=copy
    )
    tests = ("tests/test_resume.py", "tests/test_registry.py", "tests/test_config.py")
    chosen = "elastic or elasticity or hash_of_finished"
    said = typed("-m", "pytest", "-v", "-p", "no:cacheprovider", *tests, "-k", chosen, copy=copy)
    for name in ("criteo-elastic-elastic-memory", "strategies-elastic", "hash_of_finished"):
        assert re.search(rf"{name}.* PASSED", said), said
