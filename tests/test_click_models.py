"""DeepFM and DCN V2 against their papers' formulas, written out term by term."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import odist
from torch import Tensor, nn

from odist.models.dcn import DCNV2
from odist.models.deepfm import DeepFM
from odist.run.folder import Run

NUMBERS, COLUMNS, BUCKETS, WIDTH, ROWS = 4, 3, 11, 5, 6


def randomised(model: nn.Module) -> nn.Module:
    """With no weight left at its start, many of which are zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.double()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(ROWS, NUMBERS, dtype=torch.float64), torch.randint(BUCKETS, (ROWS, COLUMNS))


def tower(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The ReLU layers of one row."""
    for place in (0, 2):
        x = torch.relu(state[f"tower.{place}.weight"] @ x + state[f"tower.{place}.bias"])
    return x


@pytest.mark.parametrize("labels", [1, 2])
def test_deepfm_is_the_sum_of_its_three_parts(labels: int, inputs: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = randomised(DeepFM(NUMBERS, COLUMNS, buckets=BUCKETS, embedding_dim=WIDTH, hidden=[7, 4], labels=labels))
    state, expected = model.state_dict(), torch.zeros(ROWS, labels, dtype=torch.float64)
    for row, (numbers, ids) in enumerate(zip(*inputs, strict=True)):
        values = [*numbers, *(torch.ones((), dtype=torch.float64) for _ in ids)]
        linear = [*state["numeric_first_order"], *(state["first_order.weight"][i] for i in ids)]
        factors = [*state["numeric_factors"], *(state["embedding.weight"][i] for i in ids)]
        total = state["bias"].clone()
        for value, weight in zip(values, linear, strict=True):
            total += value * weight
        for i, j in itertools.combinations(range(len(values)), 2):
            products = factors[i] * factors[j] * values[i] * values[j]
            total += products.sum() if labels == 1 else state["pairs.weight"] @ products
        deep = torch.cat([numbers, *(state["embedding.weight"][i] for i in ids)])
        expected[row] = total + state["output.weight"] @ tower(state, deep)
    torch.testing.assert_close(model(*inputs), expected[:, 0] if labels == 1 else expected)


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
@pytest.mark.parametrize("rank", [None, 2])
def test_dcn_v2_crosses_with_the_input(structure: str, rank: int | None, inputs: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    sizes = {"buckets": BUCKETS, "embedding_dim": WIDTH, "hidden": [7, 4], "cross_layers": 2}
    model = randomised(DCNV2(NUMBERS, COLUMNS, **sizes, rank=rank, structure=structure))  # type: ignore[arg-type]
    state, expected = model.state_dict(), []
    for numbers, ids in zip(*inputs, strict=True):
        first = x = torch.cat([numbers, *(state["embedding.weight"][i] for i in ids)])
        for layer in range(2):
            matrix = state[f"cross.{layer}.up.weight"]
            if rank is not None:
                matrix = matrix @ state[f"cross.{layer}.down.weight"]
                assert torch.linalg.matrix_rank(matrix) == rank
            x = first * (matrix @ x + state[f"cross.{layer}.up.bias"]) + x
        deep = tower(state, x if structure == "stacked" else first)
        last = deep if structure == "stacked" else torch.cat([x, deep])
        expected.append(state["output.weight"][0] @ last + state["output.bias"][0])
    torch.testing.assert_close(model(*inputs), torch.stack(expected))


@pytest.mark.parametrize("name", ["deepfm", "dcn_v2"])
def test_they_codistil_with_the_work_of_one_worker_spread_over_two(name: str, tmp_path: Path) -> None:
    common = ["train", "task=criteo", f"model={name}", "scale=smoke", "algorithm=codistill", "run.progress=false"]
    common += ["train.max_examples=300", "algorithm.burn_in=100", "exchange.interval=100", "task.synthetic.rows=600"]
    done = odist(*common, "run.dir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    spread = odist(*common, "run.dir=spread", "workers=2", "train.batch=25", cwd=tmp_path)
    assert spread.returncode == 0, spread.stderr
    losses = [Run.open(tmp_path / run).results["metrics"]["log_loss"] for run in ("whole", "spread")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_tables_without_numbers_or_without_categories() -> None:
    for make in (DeepFM, DCNV2):
        for numbers, columns in ((0, 3), (4, 0)):
            model = make(numbers, columns, buckets=5, embedding_dim=2, hidden=[3])
            logits = model(torch.randn(2, numbers), torch.zeros(2, columns, dtype=torch.int32))
            assert logits.shape == (2,)
            logits.sum().backward()
