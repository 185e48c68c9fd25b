"""The whole way on real Criteo rows, by the commands of the README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def odist(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-m", "odist.cli.main", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = Path(__file__).parent.parent.parent / "shared" / "data" / "criteo" / "train.txt.gz"
    if not path.is_file():
        pytest.skip("real data not present: ../shared/data/criteo/train.txt.gz")
    folder = tmp_path_factory.mktemp("criteo")
    odist("prepare", "criteo", "--input", path.resolve(), "--output", folder / "store", cwd=folder)
    return folder / "store"


def test_prepared_rows(store):
    content = json.loads((store / "store.json").read_text())
    sizes = {name: split["stop"] - split["start"] for name, split in content["splits"].items()}
    assert sizes == {"train": 73_141, "validation": 18_285}  # 80/20 by time of 91,426 rows


def test_the_dnn_reaches_the_known_auc_on_later_rows(store, tmp_path):
    options = ("data=prepared", f"data.path={store}", "scale=small", "run.dir=dnn", "run.progress=false")
    odist("train", "task=criteo", *options, cwd=tmp_path)
    results = json.loads(odist("eval", "dnn", "--json", cwd=tmp_path))
    assert results["auc"] >= 0.76
    assert results["log_loss"] <= 0.490
    assert results["auc_interval"][0] < results["auc"] < results["auc_interval"][1]


def test_two_codistilled_retrains_and_their_churn(store, tmp_path):
    options = ("data=prepared", f"data.path={store}", "scale=small", "train.max_examples=20000", "run.progress=false")
    for seed in (1, 2):
        odist("train", "algorithm=codistill", f"seed={seed}", f"run.dir=s{seed}", *options, cwd=tmp_path)
    churn = json.loads(odist("churn", "s1", "s2", "--json", cwd=tmp_path))
    assert 0.01 < churn["mean_abs_difference"] < 0.1


def test_another_file_is_prepared_with_the_same_fitted_parts(store, tmp_path):
    unlabelled = Path(__file__).parent.parent.parent / "shared" / "data" / "criteo" / "test.txt.gz"
    odist("prepare", "criteo", "--input", unlabelled.resolve(), "--output", "test", "--like", store, cwd=tmp_path)
    options = ("data=prepared", f"data.path={store}", "scale=small", "train.max_examples=5000", "run.dir=run")
    odist("train", *options, "run.progress=false", cwd=tmp_path)
    odist("eval", "run", "--data", "test", "--output", "predictions.csv", cwd=tmp_path)
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "row,data_fingerprint,prediction"
    assert len(lines) == 1 + 12_120
