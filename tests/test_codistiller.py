"""odist.Codistiller in loops of one's own: what is added to the loss, and what a peer can and cannot do to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import odist


def network(*, outputs: int = 3, hidden: int = 8, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


Join = Callable[..., odist.Codistiller]


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    """Join a codistillation in this test's folder, with a reload at every step and a look at the store all the time."""
    with ExitStack() as stack:

        def make(model: nn.Module, group: int, **options: Any) -> odist.Codistiller:
            known = {"every": 1, "poll": 0.005, "url": str(tmp_path / "pair"), **options}
            if "num_groups" not in known:
                known.setdefault("peers", [1 - group])
            return stack.enter_context(odist.Codistiller(model, group=group, **known))

        yield make


def eventually(question: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
    return answer


def hear(peer: odist.Codistiller, *, teachers: int = 1, **said: Any) -> None:
    """Take steps until so many teachers are in use, and the log says what is expected of it."""

    def arrived() -> bool:
        peer.step()
        log = peer.log()
        return log["num_teachers"] == teachers and all(log.get(name) == value for name, value in said.items())

    eventually(arrived)


def teacher_of(peer: odist.Codistiller, number: int) -> nn.Module:
    return peer.teacher.panel.models[number]


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def test_a_peer_in_a_folder_teaches_after_the_burn_in(join: Join) -> None:
    ours, theirs = network(seed=1), network(seed=2)
    logits = ours(X)
    peer, other = join(ours, 0, burn_in=3), join(theirs, 1)
    other.step()
    for _ in range(2):
        assert float(peer.loss(logits, X)) == 0
        peer.step()
    hear(peer)
    assert peer.log()["teacher_age_seconds"] >= 0
    expected = theirs.eval()(X).softmax(dim=-1)
    by_hand = -(expected * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    loss = peer.loss(logits, X)
    assert torch.allclose(loss, by_hand)
    (loss + F.cross_entropy(logits, torch.zeros(16, dtype=torch.int64))).backward()
    assert all(parameter.grad is None for parameter in teacher_of(peer, 1).parameters())
    assert not teacher_of(peer, 1).training


def test_without_a_peer_the_loss_is_zero_and_training_goes_on(join: Join) -> None:
    model = network()
    peer = join(model, 0)
    for _ in range(3):
        loss = F.cross_entropy(model(X), torch.zeros(16, dtype=torch.int64))
        total = loss + peer.loss(model(X), X)
        assert torch.equal(total, loss)
        total.backward()
        peer.step()
    assert peer.log()["num_teachers"] == 0
    assert peer.log()["teacher_age_seconds"] is None
