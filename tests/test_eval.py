"""`odist eval` of one run or several, the files that it writes, and churn of those files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cli import odist, refused

from odist.measure.predictions import compare_retrains

QUICK = {
    "criteo": ("task=criteo", "task.synthetic.rows=400", "task.synthetic.validation_rows=300", "model.hidden=[8]"),
    "lm": ("task=lm", "task.synthetic.rows=64", "task.synthetic.validation_rows=32", "task.synthetic.vocabulary=90",
           "task.synthetic.names=8", "task.synthetic.topics=4", "task.unroll=8", "model.embedding_dim=8", "model.hidden=[8]",
           "train.evaluate_batch=4"),
    "imagenet": ("task=imagenet", "task.size=8", "task.synthetic.rows=64", "task.synthetic.validation_rows=30",
                 "train.batch=16"),
}  # fmt: skip
SMALL = ["scale=smoke", "run.progress=false", "train.passes=1", "train.evaluate_every=0", "train.checkpoint_every=0"]


@pytest.fixture(scope="module", params=list(QUICK))
def retrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A task, and a folder with three retrains of it in runs/."""
    folder = tmp_path_factory.mktemp(request.param)
    for seed in (1, 2, 3):
        done = odist("train", *SMALL, *QUICK[request.param], f"seed={seed}", f"run.dir=runs/s{seed}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return request.param, folder


RUNS = ["runs/s1", "runs/s2", "runs/s3"]


def test_churn_of_the_files_that_eval_writes_is_that_of_the_run_folders(retrained: tuple[str, Path]) -> None:
    task, folder = retrained
    done = odist("eval", *RUNS, "--output", "preds", cwd=folder)
    assert done.returncode == 0, done.stderr
    files = [folder / "preds" / f"s{seed}.parquet" for seed in (1, 2, 3)]
    slices = ["decile", "label", "position"]
    of_runs = compare_retrains([folder / run for run in RUNS], slices=slices).to_dict()
    of_files = compare_retrains(files, slices=slices).to_dict()
    csv = folder / "preds" / "shuffled.csv"
    pd.read_parquet(files[1]).sample(frac=1, random_state=0).to_csv(csv, index=False)
    mixed = compare_retrains([folder / RUNS[0], csv, files[2]], slices=slices).to_dict()
    assert of_runs["mean_abs_difference"] > 0
    assert (of_runs["flips"] is None) is (task == "lm")
    for other in (of_files, mixed):
        for key, value in of_runs.items():
            if isinstance(value, float) or key.endswith("_interval"):
                assert other[key] == (None if value is None else pytest.approx(value, rel=1e-12)), key
        for name, rows in of_runs["slices"].items():
            for ours, theirs in zip(rows, other["slices"][name], strict=True):
                assert (ours["value"], ours["rows"]) == (theirs["value"], theirs["rows"])
                assert theirs["mean_abs_difference"] == pytest.approx(ours["mean_abs_difference"], rel=1e-9)
        assert other["notes"] == []
    done = odist("churn", *files, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_churn_and_eval_call_one_metric_by_one_name(retrained: tuple[str, Path]) -> None:
    _, folder = retrained
    churned = json.loads(odist("churn", *RUNS, "--json", cwd=folder).stdout)
    evaluated = json.loads(odist("eval", *RUNS, "--json", cwd=folder).stdout)
    loss = "log_loss" if "log_loss" in evaluated[0] else "cross_entropy"
    for key in {"log_loss", "cross_entropy", "calibration_error"} & set(evaluated[0]):
        assert churned[key] == pytest.approx(np.mean([result[key] for result in evaluated]), rel=1e-6), key
    assert [row[loss] for row in churned["per_run"]] == pytest.approx([result[loss] for result in evaluated], rel=1e-6)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    for seed in (1, 2):
        done = odist("train", *SMALL, *QUICK["criteo"], f"seed={seed}", f"run.dir=runs/s{seed}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_several_runs_are_one_table_or_a_list(clicks: Path) -> None:
    single = json.loads(odist("eval", "runs/s2", "--json", cwd=clicks).stdout)
    several = json.loads(odist("eval", "runs/s1", "runs/s2", "--json", cwd=clicks).stdout)
    assert [result["run"] for result in several] == ["runs/s1", "runs/s2"]
    assert several[1] == single
    table = odist("eval", "runs/s1", "runs/s2", cwd=clicks).stdout
    for result in several:
        [line] = [line for line in table.splitlines() if result["run"] in line]
        for name in ("log_loss", "auc", "accuracy", "calibration_error"):
            assert f"{result[name]:.5f}" in line
        assert f"{result['log_loss_interval'][0]:.5f} to {result['log_loss_interval'][1]:.5f}" in line


def test_one_run_that_cannot_be_evaluated_does_not_cost_the_others(clicks: Path, tmp_path: Path) -> None:
    shutil.copytree(clicks / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/s1/checkpoints")
    done = odist("eval", "runs/s1", "runs/s2", "--output", "preds", cwd=tmp_path)
    refused(done, "1 of 2 runs were not evaluated", "s1: finished, but its checkpoints were deleted")
    assert "runs/s2" in done.stdout
    assert os.listdir(tmp_path / "preds") == ["s2.parquet"]
    refused(odist("eval", "runs/s2", "runs/s9", "--output", "other", cwd=tmp_path), "s9: no such run folder")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_folders_of_an_output_are_made(clicks: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "not" / "yet" / f"s1.{suffix}"
    done = odist("eval", "runs/s1", "--output", file, cwd=clicks)
    assert done.returncode == 0, done.stderr
    assert f"predictions: {file}" in done.stdout
    assert os.listdir(file.parent) == [file.name]
    frame = pd.read_csv(file) if suffix == "csv" else pd.read_parquet(file)
    assert list(frame.columns) == ["row", "data_fingerprint", "label", "prediction"]
    assert frame["row"].tolist() == list(range(300))


def test_an_output_that_cannot_be_written_is_refused_before_the_evaluation(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odist.engine.evaluation.load_models", lambda *_: pytest.fail("evaluated first"))
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.csv").mkdir()
    for output, said in (
        (tmp_path / "file" / "p.csv", "is not a folder"),
        (tmp_path / ("n" * 252 + ".csv"), "cannot be written: File name too long"),
        (Path("/proc/p.csv"), "cannot be written"),
        (tmp_path / "p.txt", ".csv or .parquet"),
    ):
        refused(odist("eval", "runs/s1", "--output", output, cwd=clicks), str(output), said)
    refused(odist("eval", "runs/s1", "runs/s2", "--output", "p.csv", cwd=clicks), "2 runs need a folder", "--output p")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.csv"]


def test_runs_of_one_name_need_files_of_their_own(clicks: Path, tmp_path: Path) -> None:
    shutil.copytree(clicks / "runs", tmp_path / "a")
    shutil.copytree(clicks / "runs", tmp_path / "b")
    refused(odist("eval", "a/s1", "b/s1", "--output", "preds", cwd=tmp_path), "two of the runs are called s1")
    assert not (tmp_path / "preds").exists()
