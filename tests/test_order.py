"""Orders, seeds and the sum over workers: pure functions with the properties that resume needs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odist.data.loader import Loader
from odist.data.order import SequentialOrder, ShuffledOrder, permute
from odist.rng import derive, mix, uniform
from odist.sums import TreeSum


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**62))
def test_a_permutation_hits_everything_once(size, key):
    assert sorted(permute(np.arange(size), size, key=key)) == list(range(size))


def test_each_epoch_reads_every_row_once_in_another_order():
    order = ShuffledOrder(97, 10, seed=1)
    stream = np.concatenate([order.ids(step) for step in range(97 * 2 // 10 + 1)])
    first, second = stream[:97], stream[97 : 2 * 97]
    assert sorted(first) == sorted(second) == list(range(97))
    assert list(first) != list(second)
    assert abs(np.corrcoef(first, np.arange(97))[0, 1]) < 0.35


def test_asking_in_any_order_gives_the_same_rows():
    order = ShuffledOrder(1000, 64, seed=5)
    later = order.ids(40).copy()
    order.ids(3)
    assert np.array_equal(order.ids(40), later)
    assert not np.array_equal(ShuffledOrder(1000, 64, seed=6).ids(40), later)


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_are_disjoint_and_do_not_depend_on_the_run_seed(parts):
    def rows(part, seed):
        order = ShuffledOrder(300 // parts, 300 // parts, seed=seed, partition=(part, parts, 7))
        return set(order.ids(0).tolist())

    read = [rows(part, seed=part) for part in range(parts)]
    assert sum(len(part) for part in read) == 300 == len(set.union(*read))
    assert rows(0, seed=99) == read[0]


def test_sequential_order_ends_with_a_shorter_step():
    order = SequentialOrder(10, 4)
    assert [order.ids(step).tolist() for step in range(len(order))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_seeds_are_stable_for_ever_and_differ_by_every_argument():
    assert derive(0, "init") == 151242097298907630
    assert derive(1, "order", group=2, replica=3, step=4) == 9121202302107467408
    seeds = {
        derive(0, "init"), derive(1, "init"), derive(0, "order"), derive(0, "init", group=1),
        derive(0, "init", replica=1), derive(0, "init", step=1),
    }  # fmt: skip
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_uniform_numbers_are_uniform():
    numbers = uniform(np.arange(100_000, dtype=np.uint64), key=3)
    counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
    assert counts.sum() == 100_000
    assert ((counts - 2000) ** 2 / 2000).sum() < 90  # chi-square, 49 degrees of freedom: p = 0.0003
    assert len(np.unique(mix(np.arange(100_000, dtype=np.uint64), key=3))) == 100_000


def test_a_tree_sum_has_the_same_bits_however_the_blocks_are_cut():
    torch.manual_seed(0)
    leaves = [torch.randn(500) * 10.0**k for k in range(-4, 4)]

    def summed(tensors):
        tree = TreeSum()
        for tensor in tensors:
            tree.add([tensor.clone(), None])
        return tree.total()

    whole, none = summed(leaves)
    assert none is None
    for blocks in (2, 4):
        each = len(leaves) // blocks
        partial = [summed(leaves[i * each : (i + 1) * each])[0] for i in range(blocks)]
        assert torch.equal(summed(partial)[0], whole)
    plain = leaves[0].clone()
    for leaf in leaves[1:]:
        plain = plain + leaf
    assert not torch.equal(plain, whole)
    torch.testing.assert_close(plain, whole)


def test_a_tree_sum_of_sparse_gradients():
    dense = [torch.zeros(5, 2).index_add(0, torch.tensor([1, 3, 1]), torch.randn(3, 2)) for _ in range(5)]
    tree = TreeSum()
    for tensor in dense:
        tree.add([tensor.to_sparse(1)])
    torch.testing.assert_close(tree.total()[0].to_dense(), sum(dense))


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_loader_gives_each_step_its_batch_and_builds_it_once(prefetch):
    built = []

    def build(step):
        built.append(step)
        return step * step

    loader = Loader(build, num_steps=20, prefetch=prefetch, keep=4)
    assert [loader[step] for step in range(20)] == [step * step for step in range(20)]
    assert sorted(built) == list(range(20))
    window = Loader(build, num_steps=20, prefetch=prefetch, keep=4)
    assert [window[step] for step in (0, 1, 2, 3, 0, 1, 2, 3, 4)] == [0, 1, 4, 9, 0, 1, 4, 9, 16]
    loader.close(), window.close()


def test_an_error_in_a_batch_reaches_the_reader():
    def build(step):
        raise RuntimeError(f"no rows for step {step}")

    loader = Loader(build, num_steps=3, prefetch=2)
    with pytest.raises(RuntimeError, match="no rows for step 1"):
        loader[1]
    loader.close()
