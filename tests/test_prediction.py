"""Evaluation by all processes of a group: the bits of one process, and those of a loop written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_config
from test_mesh import together

from odist.config.schema import Config
from odist.data.lanes import STREAM_LANES
from odist.engine.prediction import measure_spread, predict_split
from odist.engine.problem import build_model, build_task
from odist.mesh import Mesh

SPLITS = {
    "criteo": ("task=criteo", "model.hidden=[8]", "task.synthetic.validation_rows=1100", "train.evaluate_batch=200"),
    # 80 lanes of 5 whole and a half sequence, in blocks of 32, 32 and 16
    "lm": ("task=lm", "task.synthetic.validation_rows=440", "train.evaluate_batch=80"),
}


def make(name: str) -> tuple[Config, Any, Any]:
    config = make_config(*SPLITS[name])
    task = build_task(config)
    return config, task, build_model(config, task, group=0)


def evaluated(mesh: Mesh, name: str) -> dict[str, Any]:
    """What a process knows after an evaluation: metrics, predictions and targets in the writer, nothing elsewhere."""
    config, task, model = make(name)

    size = config.train.evaluate_batch
    order = task.evaluation_order("validation", rows=None, batch_size=size)
    metrics, kept = measure_spread(task, model, order, split="validation", device="cpu", mesh=mesh, keep=True)
    whole = predict_split(task, [model, model], batch_size=size, device="cpu", mesh=mesh)
    known = {} if whole is None else {"probabilities": whole.probabilities.tolist(), "targets": whole.targets.tolist()}
    return {"metrics": metrics, **known, **({} if kept is None else {"kept": kept.tolist()})}


def criteo(mesh: Mesh) -> dict[str, Any]:
    return evaluated(mesh, "criteo")


def lm(mesh: Mesh) -> dict[str, Any]:
    return evaluated(mesh, "lm")


@pytest.mark.parametrize("name", SPLITS)
def test_an_evaluation_by_several_processes_has_the_bits_of_one(tmp_path: Path, name: str) -> None:
    function = {"criteo": criteo, "lm": lm}[name]
    torch.set_num_threads(1)
    alone = function(Mesh())
    assert alone["metrics"]["rows"] == len(alone["targets"])
    assert alone["kept"] == alone["probabilities"]
    for processes in (2, 4):
        writer, *others = together(function, tmp_path, processes=processes)
        assert writer == alone
        assert [(other["metrics"]["rows"], other.keys()) for other in others] == [(0, {"metrics"})] * len(others)


def test_streams_of_lanes_are_the_lanes_in_blocks_with_their_carry() -> None:
    _, task, model = make("lm")
    order = task.evaluation_order("validation", rows=None, batch_size=80)
    assert (order.lanes, list(order.streams)) == (80, [len(order)] * 3)
    for step in range(len(order)):
        parts = [order.part(stream, step) for stream in range(3)]
        assert [len(part) for part in parts] == [STREAM_LANES, STREAM_LANES, 16]
        assert np.array_equal(np.concatenate(parts), order.ids(step))
    model.eval()
    carry, stored, targets = None, [], []
    with torch.no_grad():
        for step in range(len(order)):
            batch = task.batch(order.ids(step), "validation")
            logits, carry = task.forward(model, batch, carry)
            stored.append(task.probabilities(logits, batch).numpy())
            targets.append(batch.targets.flatten().numpy())
    whole = predict_split(task, [model], batch_size=80, device="cpu")
    assert whole is not None
    np.testing.assert_allclose(whole.probabilities, np.concatenate(stored), rtol=1e-5)
    assert np.array_equal(whole.targets, np.concatenate(targets))
