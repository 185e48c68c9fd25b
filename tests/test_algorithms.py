"""Algorithms against each other: what must be equal is, what must differ does."""

from __future__ import annotations

import pytest
import torch
from conftest import make_config, weight_hashes

from odist.engine.checkpoint import common_step, load_weights
from odist.engine.problem import build_model
from odist.errors import UserError
from odist.launch.check import validate
from odist.losses import Soft
from odist.tasks.criteo import CriteoTask
from odist.teachers.base import rising

SMALL = ("train.max_examples=1200", "algorithm.burn_in=200", "exchange.interval=100")
SGD = ("optim=sgd", "optim.lr=0.5")


def assert_close(left, right, tolerance):
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=tolerance, msg=name)


def test_the_same_seed_twice_gives_the_same_bits_and_another_seed_others(train):
    first = train("algorithm=codistill", *SMALL, name="first")
    again = train("algorithm=codistill", *SMALL, name="again")
    other = train("algorithm=codistill", "seed=1", *SMALL, name="other")
    assert weight_hashes(first) == weight_hashes(again)
    assert not set(weight_hashes(first)) & set(weight_hashes(other))


def test_weight_zero_is_the_ensemble_and_group_0_is_the_single_model(train):
    codistilled = train("algorithm=codistill", "algorithm.distill_weight=0", *SMALL, name="zero")
    ensemble = train("algorithm=ensemble", *SMALL, name="ensemble")
    single = train("algorithm=sync", *SMALL, name="single")
    real = train("algorithm=codistill", *SMALL, name="real")
    assert weight_hashes(codistilled) == weight_hashes(ensemble)
    assert weight_hashes(ensemble)[0] == weight_hashes(single)[0]
    assert weight_hashes(real)[0] != weight_hashes(single)[0]


def test_codistillation_before_burn_in_is_plain_training(train):
    late = train("algorithm=codistill", *SMALL, "algorithm.burn_in=1200", name="late")
    ensemble = train("algorithm=ensemble", *SMALL, name="ensemble")
    assert weight_hashes(late) == weight_hashes(ensemble)


def test_a_ramp_gives_the_first_step_a_share_of_the_weight(train):
    """A run whose last step alone hears its teacher; a ramp of four steps (of 50 examples) gives that a quarter."""
    once = ("algorithm=codistill", *SMALL, "train.batch=50", "algorithm.burn_in=1150")
    rising = train(*once, "algorithm.ramp=200", name="rising")
    quarter = train(*once, "algorithm.distill_weight=0.25", name="quarter")
    assert weight_hashes(rising) == weight_hashes(quarter)
    assert weight_hashes(rising) != weight_hashes(train(*once, name="whole"))


def test_the_weight_rises_to_its_full_size_and_stays_there():
    soft = Soft((torch.zeros(1),))
    weights = [rising(soft, step=step, burn_in=3, ramp=4).weight for step in range(3, 9)]
    assert weights == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rising(soft, step=3, burn_in=3, ramp=0).weight == 1
    assert rising(None, step=3, burn_in=3, ramp=4) is None


def test_a_temperature_changes_what_is_learnt_and_losses_of_logits_refuse_one(train):
    once = ("algorithm=codistill", *SMALL)
    warm = train(*once, "algorithm.temperature=4", name="warm")
    assert weight_hashes(warm) != weight_hashes(train(*once, name="plain"))
    with pytest.raises(UserError, match=r"Add algorithm\.temperature=1"):
        validate(make_config(*once, "algorithm.temperature=4", "algorithm.distill_loss=squared_logits"))


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_workers_times_batch_is_one_big_batch(train, workers):
    batch = 48 // workers
    many = train("algorithm=sync", f"workers={workers}", f"train.batch={batch}", *SGD, *SMALL, name="many")
    one = train("algorithm=sync", "workers=1", "train.batch=48", *SGD, *SMALL, name="one")
    config = make_config("algorithm=sync")
    assert_close(weights_of(many, config), weights_of(one, config), 2e-6)


def test_delayed_without_delay_is_sync_at_one_worker(train):
    delayed = train("algorithm=delayed", "workers=1", "algorithm.delay=0", *SMALL, name="delayed")
    sync = train("algorithm=sync", "workers=1", *SMALL, name="sync")
    assert weight_hashes(delayed) == weight_hashes(sync)


def test_delay_changes_the_result(train):
    now = train("algorithm=delayed", "workers=4", "algorithm.delay=0", *SMALL, name="now")
    closed_loop = train("algorithm=delayed", "workers=4", *SMALL, name="loop")
    three = train("algorithm=delayed", "workers=4", "algorithm.delay=3", *SMALL, name="three")
    assert weight_hashes(closed_loop) == weight_hashes(three)
    assert weight_hashes(closed_loop) != weight_hashes(now)


def test_delayed_updates_by_hand(train):
    """Update u of plain SGD uses the gradient at version u - 2."""
    overrides = ("algorithm=delayed", "workers=2", "algorithm.delay=2", *SGD, *SMALL)
    run, config = train(*overrides), make_config(*overrides)
    task = CriteoTask(config)
    versions = [build_model(config, task, group=0)]
    from odist.rng import derive

    order = task.order(group=0, num_groups=1, examples_per_step=2 * config.train.batch, seed=derive(0, "order"))
    for step in range(1200 // (2 * config.train.batch)):
        for ids in order.ids(step).reshape(2, -1):
            old = versions[max(0, len(versions) - 3)]
            batch = task.batch(ids, "train")
            loss = torch.nn.functional.binary_cross_entropy_with_logits(old(*batch.inputs), batch.targets)
            gradients = torch.autograd.grad(loss, list(old.parameters()))
            new = task.build_model()
            new.load_state_dict(versions[-1].state_dict())
            with torch.no_grad():
                for parameter, gradient in zip(new.parameters(), gradients, strict=True):
                    parameter -= config.optim.lr * gradient
            versions.append(new)
    assert_close(weights_of(run, config), versions[-1].state_dict(), 2e-6)


def weights_of(run, config):
    model = CriteoTask(config).build_model()
    load_weights(run, 0, step=common_step(run, range(1)), model=model)
    return model.state_dict()


def test_local_sgd_that_averages_at_every_step_is_sync(train):
    options = ("workers=4", "train.batch=25", *SGD, *SMALL)
    local = train("algorithm=local_sgd", "algorithm.average_every=100", *options, name="local")
    sync = train("algorithm=sync", *options, name="sync")
    rare = train("algorithm=local_sgd", "algorithm.average_every=400", *options, name="rare")
    config = make_config(*options, "algorithm=sync")
    assert_close(weights_of(local, config), weights_of(sync, config), 2e-6)
    difference = weights_of(rare, config)["output.weight"] - weights_of(sync, config)["output.weight"]
    assert difference.abs().max() > 1e-4


def test_a_finished_run_teaches_as_itself(train):
    """Distilling from two runs is distilling from their mean; the teachers' weights stay as they are."""
    first = train("algorithm=sync", "seed=11", *SMALL, name="first")
    second = train("algorithm=sync", "seed=12", *SMALL, name="second")
    pair = f"algorithm.teachers=[{first.path},{second.path}]"
    taught = train("algorithm=distill", pair, *SMALL, name="taught")
    alone = train("algorithm=distill", f"algorithm.teachers=[{first.path}]", *SMALL, name="alone")
    plain = train("algorithm=sync", *SMALL, name="plain")
    hashes = {weight_hashes(run)[0] for run in (first, second, taught, alone, plain)}
    assert len(hashes) == 5
    silent = train("algorithm=distill", pair, "algorithm.distill_weight=0", *SMALL, name="silent")
    assert weight_hashes(silent) == weight_hashes(plain)


@pytest.mark.parametrize("algorithm", ["codistill", "distill"])
def test_looking_ahead_changes_nothing_but_rounding(train, algorithm):
    options = list(SMALL)
    if algorithm == "distill":
        teacher = train("algorithm=ensemble", "seed=11", *SMALL, name="teacher")
        options.append(f"algorithm.teachers=[{teacher.path}]")
    now = train(f"algorithm={algorithm}", *options, name="now")
    ahead = train(f"algorithm={algorithm}", "exchange.lookahead=4", "workers=1", *options, name="ahead")
    config = make_config("algorithm=sync")
    assert_close(weights_of(now, config), weights_of(ahead, config), 1e-5)


def test_lag_takes_an_older_snapshot(train):
    fresh = train("algorithm=codistill", *SMALL, name="fresh")
    stale = train("algorithm=codistill", "exchange.lag=2", "train.log_every=50", *SMALL, name="stale")
    ages = stale.metrics(kind="train")["teacher_age_steps"].dropna()
    assert weight_hashes(fresh) != weight_hashes(stale)
    assert ages.min() == 4
    assert ages.max() == 5


def test_disjoint_parts_are_read_by_their_own_group(train):
    same = train("algorithm=ensemble", *SMALL, name="same")
    apart = train("algorithm=ensemble", "data.partition=disjoint", *SMALL, name="apart")
    assert weight_hashes(same)[0] == weight_hashes(apart)[0]
    assert weight_hashes(same)[1] != weight_hashes(apart)[1]
    assert apart.results["distinct_examples"] == 2400
    assert same.results["distinct_examples"] < 2000


@pytest.mark.parametrize("lag", [0, 2])
def test_a_reload_at_every_step_is_the_same_in_memory_and_through_a_store(train, lag):
    overrides = ["algorithm=codistill", "num_groups=3", "train.batch=50", "train.max_examples=600", "algorithm.burn_in=100",
                 "exchange.interval=50", f"exchange.lag={lag}"]  # fmt: skip
    runs = [train(*overrides, f"exchange={name}", name=f"{name}-{lag}") for name in ("memory", "store")]
    assert weight_hashes(runs[0]) == weight_hashes(runs[1])
