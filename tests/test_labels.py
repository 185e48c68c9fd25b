"""Rows without a label, and labels outside their range: refused, or the end of the run, and never a good result."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import SMOKE, criteo_rows, odist, refused
from token_stores import write_token_store

from odist import tasks
from odist.data.rows import HEADER_BYTES
from odist.errors import UserError
from odist.losses import LossOptions, Sums, binary, multiclass
from odist.run.folder import Run
from odist.tasks.criteo import CriteoTask

PREPARED = ["data=prepared", "data.path=store", "train.batch=20", "run.dir=run"]


def without_labels(path: Path) -> None:
    rows = [line.split("\t")[1:] for line in path.read_text().splitlines()]
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 160 training rows and 40 validation rows."""
    criteo_rows(tmp_path / "rows.txt", rows=200, seed=1)
    done = odist("prepare", "criteo", "--input", "rows.txt", "--output", "store", "--buckets", "500", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "store"


def write_label(store: Path, *, row: int, label: int) -> None:
    """Damage one label of a store."""
    columns = json.loads((store / "store.json").read_text())["columns"]
    with open(store / "rows.npy", "r+b") as file:
        file.seek(HEADER_BYTES + 4 * columns * row)
        file.write(np.int32(label).tobytes())


def test_rows_without_labels_are_not_trained_on_and_are_still_evaluated(store: Path, tmp_path: Path) -> None:
    criteo_rows(tmp_path / "more.txt", rows=60, seed=2)
    without_labels(tmp_path / "more.txt")
    make = ("prepare", "criteo", "--input", "more.txt", "--output")
    for more in (("unlabelled", "--buckets", "500"), ("like", "--like", "store")):
        assert odist(*make, *more, cwd=tmp_path).returncode == 0
        done = odist("train", *SMOKE, "data=prepared", f"data.path={more[0]}", "run.dir=run", cwd=tmp_path)
        refused(done, "no labels", "odist eval RUN --data")
        assert not (tmp_path / "run").exists()
    assert odist("train", *SMOKE, *PREPARED, cwd=tmp_path).returncode == 0
    done = odist("eval", "run", "--data", "like", "--output", "predictions.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 61


@pytest.mark.parametrize("label", [-1, 2])
def test_a_training_row_with_another_label_is_named(store: Path, tmp_path: Path, label: int) -> None:
    write_label(store, row=77, label=label)
    done = odist("train", *SMOKE, *PREPARED, "train.passes=3", cwd=tmp_path)
    refused(done, f"{store}: training row 77: targets from", "expected all from 0 to 1")
    assert not (tmp_path / "run").exists()


def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    documents = [np.random.default_rng(seed).integers(0, 60, 200) for seed in range(20)]
    write_token_store(
        tmp_path / "store", documents={"train": documents, "validation": documents[:4]}, vocabulary=60, special={}
    )
    content = bytearray((tmp_path / "store" / "train.bin").read_bytes())
    content[1000:1002] = (60_000).to_bytes(2, "little")
    (tmp_path / "store" / "train.bin").write_bytes(content)
    done = odist("train", "task=lm", *SMOKE, *PREPARED, cwd=tmp_path)
    refused(done, "train.bin: damaged: a token 60000 in a vocabulary of 60")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [-1.0, -1e-3, 1.5, math.nan])
def test_a_binary_loss_refuses_targets_outside_0_and_1(wrong: float) -> None:
    weights, right = torch.ones(4), torch.tensor([0.0, 1.0, 0.3, 1.0])
    assert float(binary(torch.zeros(4), right, weights=weights, options=LossOptions()).label) > 0
    right[2] = wrong
    with pytest.raises(UserError, match="expected all from 0 to 1"):
        binary(torch.zeros(4), right, weights=weights, options=LossOptions())


@pytest.mark.parametrize("wrong", [-1, -100, 7])
def test_a_softmax_loss_refuses_what_is_no_class(wrong: int) -> None:
    targets = torch.tensor([[0, 6], [wrong, 3]])
    with pytest.raises(UserError, match="expected all from 0 to 6"):
        multiclass(torch.zeros(2, 2, 7), targets, weights=torch.ones(2, 2), options=LossOptions())


class Bottomless(CriteoTask):
    """A task whose loss falls without end, as a cross-entropy with a wrong target does where nobody checks it."""

    def loss(self, logits, batch, soft=None):
        label = -(logits**2).sum() - 0.1
        return Sums(label, None, label)


def test_a_negative_cross_entropy_ends_the_run_as_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "criteo", f"{__name__}:Bottomless")
    done = odist("train", *SMOKE, "run.dir=run", cwd=tmp_path)
    refused(done, "the cross-entropy is -", "none is below 0", code=3)
    assert Run.open(tmp_path / "run").status["state"] == "diverged"
