"""Groups that differ: models of another size or kind and other learning rates, each other's teachers all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import compose, make_config, train_whole_and_broken, weight_hashes

from odist.cli.train_arguments import read_arguments, typed
from odist.config.groups import of_group
from odist.config.identity import config_hash
from odist.config.read import load
from odist.engine.evaluation import evaluate
from odist.errors import UserError
from odist.launch.check import validate
from odist.run.folder import Run

RUNS = {
    "criteo": "groups=[{model.hidden:[4],optim.lr:0.02},{}] train.max_examples=800 algorithm.burn_in=200 "
    "exchange.interval=200 exchange=store train.checkpoint_every=300",
    "lm": "task=lm groups=[{},{model.name:transformer,model.layers:1,model.width:16,model.heads:2}] task.unroll=8 "
    "workers=2 train.batch=4 train.max_examples=128 algorithm.burn_in=16 exchange.interval=16 train.checkpoint_every=24 "
    "train.evaluate_every=0",
    "imagenet": "task=imagenet groups=[{},{model.depth:20}] task.size=8 task.synthetic.rows=64 train.batch=8 "
    "task.synthetic.validation_rows=30 algorithm.burn_in=16 exchange.interval=16 train.checkpoint_every=24",
}


@pytest.mark.parametrize("task", RUNS)
def test_models_that_differ_teach_each_other(train: Callable[..., Run], task: str) -> None:
    """Cut off and continued, too; what predicts, and what it costs, is each group's own."""
    words = ["algorithm=codistill", *RUNS[task].split()]
    whole, _ = train_whole_and_broken(train, *words, stops=(4,))
    own = whole.results["groups"]
    assert [group["taught"] for group in own] == [True, True]
    rows = whole.metrics(kind="train")
    assert set(rows[rows["distill_loss"].notna()]["group"]) == {0, 1}
    main = "log_loss" if task == "criteo" else "cross_entropy"
    assert evaluate(whole, split="validation")[main] == pytest.approx(own[0][main], abs=1e-6)
    if task != "lm":
        alike = train(*[word for word in words if not word.startswith("groups=")], name="alike")
        assert (whole.results["flops"] < alike.results["flops"]) == (task == "criteo")


def test_without_teachers_a_group_is_what_it_would_be_alone(train: Callable[..., Run]) -> None:
    few = ("train.max_examples=400", "algorithm=ensemble")
    apart = train(*few, "groups=[{},{model.hidden:[24],optim.lr:0.02}]", name="apart")
    alike = train(*few, "model.hidden=[24]", "optim.lr=0.02", name="alike")
    plain = train(*few, name="plain")
    assert weight_hashes(apart) == [weight_hashes(plain)[0], weight_hashes(alike)[1]]


def test_the_hash_of_runs_whose_groups_are_alike_is_the_same() -> None:
    content = compose("algorithm=codistill")
    older = {key: value for key, value in content.items() if key != "groups"}
    assert config_hash(load(older)) == config_hash(load(content))
    other = load({**content, "groups": [{"model.dropout": 0.1}, {}]})
    assert config_hash(other) != config_hash(load(content))
    assert (of_group(other, 0).model.dropout, of_group(other, 1)) == (0.1, other)


def test_what_is_typed_with_equals_signs_is_understood() -> None:
    word = "groups=[{model.hidden=[64,32], optim.lr=0.1},{}]"
    [override] = read_arguments([word]).overrides
    assert override == "groups=[{model.hidden:[64,32],optim.lr:0.1},{}]"
    config = make_config("algorithm=codistill", override)
    assert config.groups == [{"model.hidden": [64, 32], "optim.lr": 0.1}, {}]
    assert f"groups={typed(config.groups)}" == override


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("[{}]", "groups: 1 entries with num_groups=2. Give one for every group"),
        ("[{},{train.batch:7}]", "groups: train.batch is the same for all groups"),
        ("[{},{model.hiden:[7]}]", r"groups: group 1: .*model.hiden.*model.hidden"),
        ("[{},{optim.lr:-1}]", r"groups: group 1: optim.lr=-1.0: expected a number more than 0"),
        ("[{model.name:lstm},{}]", r"groups: group 0: model=lstm cannot learn task=criteo"),
    ],
)
def test_what_groups_cannot_have_of_their_own_is_refused(groups: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(make_config("algorithm=codistill", f"groups={groups}"))
