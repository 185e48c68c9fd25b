"""Teachers from anything: models, functions, files of weights and of predictions, in one's own loop and in a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import odist as typed
from conftest import weight_hashes
from safetensors.torch import save_file
from test_codistiller import X, network

import odist
from odist.errors import UserError


def predictions_of(model: torch.nn.Module, path: Path) -> Path:
    """A file of what a model says of X, whose rows are called 100, 101 and so on, in another order."""
    shares = model.eval()(X).softmax(-1).detach().numpy()
    order = np.random.default_rng(0).permutation(len(X))
    columns = {f"prediction_{number}": shares[order, number] for number in range(shares.shape[1])}
    pd.DataFrame({"name": 100 + order, **columns}).to_parquet(path)
    return path


def test_models_functions_and_files_teach_alike(tmp_path: Path) -> None:
    teacher, logits = network(seed=2).eval(), network(seed=1)(X)
    expected = F.cross_entropy(logits, teacher(X).softmax(-1).detach())
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    file = predictions_of(teacher, tmp_path / "yesterday.parquet")
    keys = torch.arange(100, 116)
    sources: list[tuple[Any, dict[str, Any]]] = [
        (teacher, {}),
        (lambda x: teacher(x), {}),
        (tmp_path / "teacher.safetensors", {"build": network}),
        (file, {"key": "name"}),
    ]
    for source, options in sources:
        torch.testing.assert_close(odist.Distiller(source, **options).loss(logits, X, rows=keys), expected)
    both = odist.Distiller(teacher, file, key="name", burn_in=1)
    assert both.loss(logits, X, rows=keys) == 0
    both.step()
    torch.testing.assert_close(both.loss(logits, X, rows=keys), expected)
    with pytest.raises(UserError, match="no prediction of row 116"):
        both.loss(logits, X, rows=keys + 1)
    with pytest.raises(UserError, match="rows=keys"):
        both.loss(logits, X)
    with pytest.raises(UserError, match="build="):
        odist.Distiller(tmp_path / "teacher.safetensors")


SMALL = ("seed=1", "train.max_examples=400", "train.batch=40")


def test_predictions_of_a_run_teach_as_the_run_does(train: Callable[..., Any], tmp_path: Path) -> None:
    """`odist eval` writes what a model says of the training rows; learning from that is learning from the model."""
    old = train("algorithm=sync", *SMALL, name="old")
    shown = typed("eval", "old", "--split", "train", "--output", "old.parquet", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    (weights,) = (old.path / "checkpoints" / "group-0").glob("step-*/model.safetensors")
    losses, hashes = [], []
    for teacher in (old.path, tmp_path / "old.parquet", weights):
        run = train("algorithm=distill", f"algorithm.teachers=[{teacher}]", *SMALL, name=f"new-{len(losses)}")
        losses.append(run.metrics(kind="train")["distill_loss"].to_numpy(dtype=float))
        hashes.append(weight_hashes(run))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert hashes[2] == hashes[0]


def test_files_that_cannot_teach_are_named(tmp_path: Path) -> None:
    def train(teacher: str) -> Any:
        return typed(
            "train", "scale=smoke", "algorithm=distill", f"algorithm.teachers=[{teacher}]", *SMALL, "run.dir=run", cwd=tmp_path
        )  # fmt: skip

    assert "no such file" in train("nothing.parquet").stderr
    pd.DataFrame({"row": [1], "prediction": [0.5], "data_fingerprint": ["validation-abc"]}).to_parquet(
        tmp_path / "other.parquet"
    )
    found = train("other.parquet")
    assert (found.returncode, "predictions of other rows (validation-abc)" in found.stderr) == (2, True), found.stderr
