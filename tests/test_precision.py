"""train.precision=bf16: products in bfloat16 by autocast, teachers' matrices cast; weights, losses, statistics stay float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import make_config, weight_hashes

from odist.engine.devices import on_device
from odist.engine.precision import as_teacher, in_bf16
from odist.engine.problem import build_model, build_task
from odist.run.folder import Run

MODELS = {
    "mlp": ["task=criteo"],
    "deepfm": ["task=criteo", "model=deepfm"],
    "dcn_v2": ["task=criteo", "model=dcn_v2"],
    "resnet": ["task=imagenet"],
    "wrn": ["task=imagenet", "model=wrn"],
    "lstm": ["task=lm", "task.unroll=8"],
    "transformer": ["task=lm", "model=transformer"],
}


@pytest.mark.parametrize("name", MODELS)
def test_products_are_rounded_and_all_else_stays_float32(name: str) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        config = make_config(*MODELS[name], f"train.precision={precision}")
        task = build_task(config)
        model = build_model(config, task, group=0).train()
        with torch.no_grad():  # zeros at the start would hide what comes before them
            torch.manual_seed(0)
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        order = task.order(group=0, num_groups=1, examples_per_step=8, seed=0)
        batch = task.batch(order.ids(0), "train").to("cpu")
        logits, carry = task.forward(model, batch, None)
        sums = task.loss(logits, batch)
        sums.total.backward()
        assert {logits.dtype, sums.total.dtype, *(state.dtype for state in carry or [])} == {torch.float32}
        tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *model.buffers()]
        assert {tensor.dtype for tensor in tensors} <= {torch.float32, torch.int64}
        teacher = as_teacher(copy.deepcopy(model), config).eval()
        matrices = {parameter.dtype for parameter in teacher.parameters() if parameter.ndim > 1}
        assert matrices == {torch.bfloat16 if precision == "bf16" else torch.float32}
        teacher.load_state_dict(model.state_dict())  # as at a reload
        assert {parameter.dtype for parameter in teacher.parameters() if parameter.ndim > 1} == matrices
        with torch.no_grad():
            taught, _ = task.forward(teacher, batch, None)
            expected, _ = task.forward(model.eval(), batch, None)
        assert taught.dtype == torch.float32
        found[precision] = logits.detach(), expected, taught
    for exact, rounded in zip(found["fp32"], found["bf16"], strict=True):
        assert 0 < (exact - rounded).norm() < 0.05 * exact.norm()


def test_a_pair_trains_in_bf16_to_nearly_the_same_losses(train: Callable[..., Run]) -> None:
    words = ("task=lm", "task.unroll=8", "algorithm=codistill", "train.max_examples=160", "train.log_every=80")
    exact, rounded = (train(*words, f"train.precision={name}", name=name) for name in ("fp32", "bf16"))
    assert set(weight_hashes(exact)).isdisjoint(weight_hashes(rounded))
    for column in ("label_loss", "distill_loss"):
        one, other = (run.metrics(kind="train")[column].dropna().to_numpy() for run in (exact, rounded))
        assert len(one) == len(other) > 0
        assert other == pytest.approx(one, rel=0.01)


def test_auto_is_bf16_at_paper_scale_on_a_gpu() -> None:
    config = make_config()
    assert config.train.precision == "auto"
    paper = replace(config, scale="paper")
    assert [in_bf16(one) for one in (config, paper, on_device(config, "cuda:1"), on_device(paper, "cuda:1"))] == [
        False,
        False,
        False,
        True,
    ]
