"""Optimisers: sparse against dense gradients, clipping against torch, schedules by hand, saved state."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from conftest import make_config
from torch import nn

from odist.config.schema import OptimConfig
from odist.engine.problem import build_task, make_clock
from odist.launch.check import validate
from odist.models.mlp import EmbeddingMLP
from odist.optim import Clock, Optimizer, absolute, learning_rate

BUCKETS, BATCH, STEPS = 40, 16, 8
CLOCK = Clock(BATCH, 100)


@pytest.fixture(autouse=True)
def _as_in_a_run() -> None:
    torch.sparse.check_sparse_tensor_invariants.disable()  # what wiring.set_up_torch does


def make_model(*, seed: int = 0) -> EmbeddingMLP:
    torch.manual_seed(seed)
    model = EmbeddingMLP(3, 4, buckets=BUCKETS, embedding_dim=5, hidden=[7, 6])
    nn.init.normal_(model.output.weight)  # zero at the start, which would keep every gradient below at zero
    return model


def batches(steps: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches whose ids repeat within an example, within a batch and between batches; ids above 29 never occur."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(steps):
        ids = torch.randint(0, 30, (BATCH, 4), generator=generator, dtype=torch.int32)
        ids[:, 1] = ids[:, 0]
        ids[: BATCH // 2, 2] = 7
        numeric = torch.randn(BATCH, 3, generator=generator)
        made.append((numeric, ids, (torch.rand(BATCH, generator=generator) < 0.3).float()))
    return made


def backward(model: EmbeddingMLP, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    numeric, ids, targets = batch
    logits = model(numeric, ids)
    nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum").backward()


def train(config: OptimConfig, *, steps: int = STEPS, start: int = 0, model: EmbeddingMLP | None = None) -> nn.Module:
    model = model or make_model()
    optimizer = Optimizer(model, config, clock=CLOCK)
    for step, batch in enumerate(batches()[start : start + steps], start=start):
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.update(step)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"name": "adagrad", "lr": 0.05},
        {"name": "adagrad", "lr": 0.05, "initial_accumulator": 0.1, "eps": 1e-3},
        {"name": "adagrad", "lr": 0.05, "clip_norm": 1.0, "schedule": "cosine", "warmup": 3 * BATCH},
        {"name": "sgd", "lr": 0.02},
        {"name": "sgd", "lr": 0.02, "clip_norm": 2.0},
    ],
    ids=str,
)
def test_sparse_gradients_are_the_same_maths_as_dense_ones(options):
    sparse = train(OptimConfig(sparse=True, **options))
    dense = train(OptimConfig(sparse=False, **options))
    assert sparse.embedding.sparse
    assert not dense.embedding.sparse
    start = make_model().embedding.weight
    moved = (sparse.embedding.weight != start).any(dim=1)
    assert moved[:30].sum() > 20  # the comparison is about something
    assert torch.equal(sparse.embedding.weight[30:], start[30:])
    assert torch.equal(dense.embedding.weight[30:], start[30:])
    for (name, left), right in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=2e-5, atol=2e-6, msg=name)


def test_rows_outside_the_batch_keep_their_bits():
    model = make_model()
    optimizer = Optimizer(model, OptimConfig(name="adagrad", lr=0.05), clock=CLOCK)
    for step, batch in enumerate(batches()):
        before = model.embedding.weight.detach().clone()
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.update(step)
        outside = torch.ones(BUCKETS, dtype=torch.bool)
        outside[batch[1].unique().long()] = False
        assert torch.equal(model.embedding.weight[outside], before[outside])
        assert not torch.equal(model.embedding.weight[~outside], before[~outside])


def test_sparse_adagrad_equals_adagrad_written_out():
    """The table against the rule itself in float64: one accumulator per weight, repeated ids summed first."""
    model = make_model()
    optimizer = Optimizer(model, OptimConfig(name="adagrad", lr=0.05, eps=1e-8), clock=CLOCK)
    weights = model.embedding.weight.detach().double()
    squares = torch.zeros_like(weights)
    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        backward(model, batch)
        gradient = model.embedding.weight.grad.to_dense().double()
        squares += gradient**2
        weights = weights - 0.05 * gradient / (squares.sqrt() + 1e-8)
        optimizer.update(step)
    torch.testing.assert_close(model.embedding.weight.double(), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "adam"},
        {"name": "adamw", "weight_decay": 0.01},
        {"name": "sgd", "momentum": 0.9},
        {"name": "sgd", "weight_decay": 0.01},
        {"name": "adagrad", "weight_decay": 0.01},
        {"name": "adagrad", "sparse": False},
    ],
    ids=str,
)
def test_tables_stay_dense_where_sparse_gradients_would_change_the_maths(options):
    """Against torch's own optimiser over all parameters, dense, step by step."""
    model, plain = make_model(), make_model()
    optimizer = Optimizer(model, OptimConfig(lr=0.01, **options), clock=CLOCK)
    assert not model.embedding.sparse
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
    }
    own = {key: value for key, value in options.items() if key not in ("name", "sparse")}
    eps = {"eps": 1e-8} if options["name"] == "adagrad" else {}
    other = kinds[options["name"]](plain.parameters(), lr=0.01, **own, **eps)
    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        other.zero_grad()
        backward(model, batch)
        backward(plain, batch)
        assert not model.embedding.weight.grad.is_sparse
        optimizer.update(step)
        other.step()
    for (name, left), right in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_over_dense_and_sparse_equals_torch_on_dense(max_norm):
    model, plain = make_model(), make_model()
    # SGD with rate 1 moves the weights by the clipped gradient itself.
    optimizer = Optimizer(model, OptimConfig(name="sgd", lr=1.0, clip_norm=max_norm), clock=CLOCK)
    [batch] = batches(1)
    backward(model, batch)
    backward(plain, batch)
    assert model.embedding.weight.grad.is_sparse
    expected = float(nn.utils.clip_grad_norm_(plain.parameters(), max_norm))
    assert optimizer.grad_norm() == pytest.approx(expected, rel=1e-6)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.update(0)
    assert optimizer.grad_norm() == pytest.approx(expected, rel=1e-6)  # as it was before clipping
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(before[name] - parameter, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_constant_schedule_with_warm_up():
    config = OptimConfig(name="sgd", lr=0.8, warmup=400)
    rates = [learning_rate(config, examples, horizon=1000) for examples in (0, 99, 199, 399, 400, 999)]
    assert rates == pytest.approx([0.8 / 400, 0.2, 0.4, 0.8, 0.8, 0.8])


def test_cosine_schedule():
    config = OptimConfig(name="sgd", lr=2.0, schedule="cosine", final_fraction=0.1)
    half = 2.0 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)  # a quarter of the way: cos(pi / 4)
    rates = [learning_rate(config, examples, horizon=800) for examples in (0, 200, 400, 800, 900)]
    assert rates == pytest.approx([2.0, half, 1.1, 0.2, 0.2])


def test_cosine_begins_after_the_warm_up():
    config = OptimConfig(name="sgd", lr=1.0, schedule="cosine", warmup=200)
    rates = [learning_rate(config, examples, horizon=1000) for examples in (49, 199, 200, 600, 1000)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0])


def test_steps_schedule():
    config = OptimConfig(name="sgd", lr=1.0, schedule="steps", milestones=[300, 600], decay=0.1, warmup=100)
    rates = [learning_rate(config, examples, horizon=900) for examples in (49, 299, 300, 599, 600, 899)]
    assert rates == pytest.approx([0.5, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_updates_use_the_rate_of_their_step():
    """Dense and sparse part both: SGD moves every weight by the rate times its gradient."""
    model = make_model()
    config = OptimConfig(name="sgd", lr=1.0, warmup=10 * BATCH)
    optimizer = Optimizer(model, config, clock=CLOCK)
    for step, batch in enumerate(batches(3)):
        optimizer.zero_grad()
        backward(model, batch)
        rate = (step * BATCH + 1) / (10 * BATCH)
        expected = {n: p.detach() - rate * p.grad.to_dense() for n, p in model.named_parameters()}
        optimizer.update(step)
        assert optimizer.last_lr == pytest.approx(rate)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_fraction_of_a_step_counts_on_the_clock():
    model = make_model()
    optimizer = Optimizer(model, OptimConfig(name="sgd", lr=1.0, warmup=10 * BATCH), clock=CLOCK)
    backward(model, batches(1)[0])
    optimizer.update(2, fraction=0.5)
    assert optimizer.last_lr == pytest.approx((2.5 * BATCH + 1) / (10 * BATCH))


@pytest.mark.parametrize(("examples", "steps"), [(0, 0), (-5, 0), (1, 1), (23, 1), (25, 2), (1600, 100)])
def test_clock_turns_examples_into_steps(examples, steps):
    assert CLOCK.steps(examples) == steps
    assert CLOCK.horizon == 1600


@pytest.mark.parametrize(
    "options",
    [{"name": "adagrad"}, {"name": "adam"}, {"name": "adamw"}, {"name": "sgd", "momentum": 0.9}, {"name": "sgd"}],
    ids=str,
)
def test_saved_state_continues_in_the_same_bits(options):
    config = OptimConfig(lr=0.05, **options)
    whole = train(config)
    model = make_model()
    first = Optimizer(model, config, clock=CLOCK)
    for step, batch in enumerate(batches(3)):
        first.zero_grad()
        backward(model, batch)
        first.update(step)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    continued = copy.deepcopy(model)
    second = Optimizer(continued, config, clock=CLOCK)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for step, batch in enumerate(batches()[3:], start=3):
        second.zero_grad()
        backward(continued, batch)
        second.update(step)
    for (name, left), right in zip(whole.named_parameters(), continued.parameters(), strict=True):
        assert torch.equal(left, right), name


def test_a_twin_has_state_of_its_own():
    model = make_model()
    one = Optimizer(model, OptimConfig(name="adagrad", lr=0.05), clock=CLOCK)
    two = one.twin()
    backward(model, batches(1)[0])
    one.update(0)

    def total(optimizer):
        parts = optimizer.state_dict()["parts"]
        return sum(float(state["sum"].sum()) for part in parts for state in part["state"].values())

    assert total(one) > 0
    assert total(two) == 0


@pytest.mark.parametrize("task", ["criteo", "lm", "imagenet"])
def test_the_usual_rivals_are_existing_keys(task):
    """A drop of the rate, twice the steps, twice the batch at equal examples and at equal steps."""

    def clock(*overrides):
        config = make_config(f"task={task}", *overrides)
        validate(config)
        return make_clock(config, build_task(config)), config

    own, config = clock()
    batch, passes = config.train.batch, config.train.passes
    _, dropped = clock("optim.schedule=steps", "optim.milestone_shares=[0.8]", "optim.decay=0.1")
    rates = [
        learning_rate(absolute(dropped.optim, clock=own), share * own.horizon, horizon=own.horizon)
        for share in (0.7, 0.9)
    ]
    assert rates[1] / rates[0] == pytest.approx(0.1)
    assert clock(f"train.passes={2 * passes}")[0].num_steps == 2 * own.num_steps
    larger = clock(f"train.batch={2 * batch}")[0]
    assert (larger.horizon, larger.num_steps) == (own.horizon, own.num_steps // 2)
    assert clock(f"train.batch={2 * batch}", f"train.passes={2 * passes}")[0].num_steps == own.num_steps
