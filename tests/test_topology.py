"""Which groups teach which: constant cost in a ring and with a draw, and bits that survive a break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import make_config, train_whole_and_broken

from odist.errors import UserError
from odist.exchange.topology import Topology
from odist.launch.check import validate
from odist.run.folder import Run

SMALL = [
    "algorithm=codistill",
    "num_groups=4",
    "train.max_examples=1200",
    "algorithm.burn_in=200",
    "exchange.interval=200",
    "train.checkpoint_every=300",
    "train.log_every=100",
]


def test_a_ring_and_a_draw_read_as_many_peers_however_many_groups_there_are() -> None:
    ring = Topology("ring", 2, num_groups=5, seed=0)
    assert [ring.peers(group, step=8) for group in range(5)] == [[1, 2], [2, 3], [3, 4], [0, 4], [0, 1]]
    assert ring.readers(0) == [3, 4]
    drawn = Topology("random", 2, num_groups=50, seed=0)
    found = {(group, step): drawn.peers(group, step=step) for group in range(50) for step in range(0, 80, 8)}
    assert all(len(set(peers) - {group}) == 2 for (group, _), peers in found.items())
    assert found == {(group, step): drawn.peers(group, step=step) for group, step in found}  # pure
    assert {peer for peers in found.values() for peer in peers} == set(range(50))
    assert drawn.peers(0, step=0) != Topology("random", 2, num_groups=50, seed=1).peers(0, step=0)
    assert drawn.readers(0) == list(range(1, 50))
    everybody = Topology("all", 1, num_groups=3, seed=0)
    assert (everybody.peers(1, step=0), everybody.readers(1)) == ([0, 2], [0, 2])


def taught_by(run: Run) -> dict[tuple[int, int], list[int]]:
    """Groups whose snapshots were taken, by the group that took them and the step."""
    found: dict[tuple[int, int], list[int]] = {}
    for _, row in run.metrics(kind="train").iterrows():
        swaps: Any = row.get("swaps")
        for step, peer, *_ in swaps if isinstance(swaps, list) else []:
            found.setdefault((int(row["group"]), step), []).append(peer)
    return found


@pytest.mark.parametrize(
    ("exchange", "topology"),
    [
        ("memory", "exchange.topology=random exchange.lookahead=3"),
        ("store", "exchange.topology=random exchange.degree=2 exchange.lag=1"),
        ("store", "exchange.topology=ring algorithm.include_self=true"),
    ],
)
def test_groups_hear_their_peers_alone_and_a_broken_run_ends_in_the_same_bits(
    train: Callable[..., Run], exchange: str, topology: str
) -> None:
    words = [*SMALL, f"exchange={exchange}", *topology.split()]
    _, broken = train_whole_and_broken(train, *words, stops=(6,))
    options = make_config(*words).exchange
    known = Topology(options.topology, options.degree, num_groups=4, seed=0)
    taught = taught_by(broken)
    assert len(taught) >= 4 * 3
    for (group, step), peers in taught.items():
        own = [group] if "include_self" in topology else []
        assert peers == sorted([*known.peers(group, step=step), *own])


def test_a_carry_starts_at_zero_for_a_peer_that_is_drawn_again(train: Callable[..., Run]) -> None:
    """Language models carry a state over the stream; a resume in the middle must not find another's."""
    words = "task=lm algorithm=codistill num_groups=3 task.unroll=8 train.max_examples=128 workers=2 train.batch=4"
    few = "train.evaluate_every=0 train.checkpoint_every=24 algorithm.burn_in=8 exchange.interval=16 train.log_every=8"
    train_whole_and_broken(train, *words.split(), *few.split(), "exchange.topology=random", stops=(5,))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("exchange.degree=2", r"exchange.degree=2 with exchange.topology=all: every group learns from all others"),
        (
            "exchange.topology=ring exchange.degree=2",
            r"exchange.degree=2 with num_groups=2: a group has 1 peers at most",
        ),
        ("exchange.topology=star", r"exchange.topology=star"),
    ],
)
def test_impossible_topologies_are_refused(words: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(make_config("algorithm=codistill", *words.split()))
