"""Which runs count as retrains of one system: by real configurations of every task."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import compose

from odist.config.identity import FREE_KEYS, config_hash
from odist.config.read import load
from odist.config.systems import system_differences, system_of


def compared(first: list[str], second: list[str]) -> dict[str, list[Any]]:
    return system_differences([compose(*first), compose(*second)])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["seed=1"], ["seed=2", "run.dir=elsewhere", "run.progress=true"]),
        (["algorithm=codistill"], ["algorithm=codistill", "launch=local", "launch.processes=1", "launch.threads=2"]),
        (["algorithm=codistill", "exchange.timing=freshest", "exchange=store"],
         ["algorithm=codistill", "exchange.timing=freshest", "exchange=store", "exchange.url=/x", "exchange.poll=9"]),
        (["train.prefetch=0", "train.log_every=500"], ["train.evaluate_every=100", "train.checkpoint_every=50"]),
        (["algorithm=sync", "algorithm.burn_in=100"], ["algorithm=sync", "exchange=store", "algorithm.average_every=7"]),
        (["task=lm", "optim=adam", "optim.momentum=0.5"], ["task=lm", "optim=adam"]),
        (["data=prepared", "data.path=/a"], ["data=prepared", "data.path=/b", "task.synthetic.rows=5"]),
    ],
)  # fmt: skip
def test_runs_that_differ_in_nothing_that_is_learnt_are_one_system(first: list[str], second: list[str]) -> None:
    assert compared(first, second) == {}
    assert system_of(compose(*first)) == system_of(compose(*second))


@pytest.mark.parametrize(
    ("first", "second", "keys"),
    [
        ([], ["optim.lr=0.5"], ["optim.lr"]),
        (["algorithm=codistill", "exchange=store"],
         ["algorithm=codistill", "exchange=store", "exchange.timing=freshest"], ["exchange.timing"]),
        (["algorithm=codistill"], ["algorithm=codistill", "exchange.interval=50"], ["exchange.interval"]),
        (["workers=2"], [], ["workers"]),
        (["algorithm=local_sgd"], ["algorithm=local_sgd", "algorithm.average_every=50"], ["algorithm.average_every"]),
        (["optim=sgd"], ["optim=sgd", "optim.momentum=0.9"], ["optim.momentum"]),
        (["task=imagenet"], ["task=imagenet", "model.depth=20", "task.threads=2"], ["model.depth"]),
    ],
)  # fmt: skip
def test_what_tells_two_systems_apart_is_named(first: list[str], second: list[str], keys: list[str]) -> None:
    assert list(compared(first, second)) == keys


def test_keys_that_follow_from_others_are_not_named() -> None:
    differing = compared(["algorithm=sync"], ["algorithm=codistill"])
    assert differing == {
        "num_groups": [1, 2],
        "algorithm.name": ["sync", "codistill"],
        "algorithm.teacher": ["none", "peers"],
    }


def test_a_key_that_some_do_not_read_is_named_where_the_others_differ_in_it() -> None:
    intervals = [compose("algorithm=codistill", f"exchange.interval={interval}") for interval in (50, 100)]
    assert system_differences([compose("algorithm=sync"), *intervals])["exchange.interval"] == [None, 50, 100]


def test_a_run_of_an_older_version_has_the_defaults_of_keys_that_it_lacks() -> None:
    older = compose("task=lm")
    for node, key in (("task", "unroll"), ("optim", "warmup_share"), ("train", "passes")):
        del older[node][key]
    assert system_differences([older, compose("task=lm")]) == {}
    assert list(system_differences([older, compose("task=lm", "task.unroll=8")])) == ["task.unroll"]


def test_a_task_of_another_package_is_compared_by_what_it_says() -> None:
    configs = [
        {"seed": seed, "task": {"name": "moons", "noise": noise}} for seed, noise in ((1, 0.3), (2, 0.3), (3, 0.4))
    ]
    assert system_differences(configs[:2]) == {}
    assert system_differences(configs) == {"task.noise": [0.3, 0.3, 0.4]}


def test_what_is_not_hashed_makes_no_other_system() -> None:
    """A system is at most as fine as the hash that names a run's configuration."""
    plain, changed = compose(), compose(*(f"{key}=3" for key in FREE_KEYS if key.startswith(("train.", "exchange."))))
    assert config_hash(load(plain)) == config_hash(load(changed))
    assert system_of(plain) == system_of(changed)
