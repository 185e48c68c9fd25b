"""What else makes several workers or groups one better model: DiLoCo, post-local SGD and PAPA, held against what was published."""

from __future__ import annotations

import pytest
import torch
from conftest import make_config, weight_hashes

from odist.engine.checkpoint import common_step, load_weights
from odist.engine.problem import build_model
from odist.errors import UserError
from odist.launch.check import validate
from odist.rng import derive
from odist.tasks.criteo import CriteoTask

SMALL = ("train.max_examples=1200", "algorithm.burn_in=200", "exchange.interval=100")
SGD = ("optim=sgd", "optim.lr=0.5")
PLAIN = ("algorithm.outer_lr=1", "algorithm.outer_momentum=0")  # the outer step is the mean


def weights_of(run, config):
    model = CriteoTask(config).build_model()
    load_weights(run, 0, step=common_step(run, range(1)), model=model)
    return model.state_dict()


def assert_close(left, right, tolerance):
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=tolerance, msg=name)


def test_diloco_with_one_worker_and_a_plain_outer_step_is_the_inner_optimizer(train):
    options = ("workers=1", "optim=adamw", "optim.lr=0.01", *SMALL)
    diloco = train("algorithm=diloco", *PLAIN, "algorithm.average_every=350", *options, name="diloco")
    assert weight_hashes(diloco) == weight_hashes(train("algorithm=sync", *options, name="sync"))


def test_a_plain_outer_step_is_local_sgd_and_fragments_are_not(train):
    options = ("workers=4", "train.batch=25", "algorithm.average_every=300", *SMALL)
    local = train("algorithm=local_sgd", *options, name="local")
    diloco = train("algorithm=diloco", *PLAIN, *options, name="diloco")
    assert weight_hashes(diloco) == weight_hashes(local)
    streaming = train("algorithm=diloco", *PLAIN, *options, "algorithm.fragments=3", name="streaming")
    assert weight_hashes(streaming) != weight_hashes(local)


def test_diloco_that_agrees_at_every_step_of_sgd_is_sync(train):
    options = ("workers=4", "train.batch=25", *SGD, *SMALL)
    diloco = train("algorithm=diloco", *PLAIN, "algorithm.average_every=100", *options, name="diloco")
    sync = train("algorithm=sync", *options, name="sync")
    config = make_config(*options)
    assert_close(weights_of(diloco, config), weights_of(sync, config), 2e-6)


def test_diloco_by_hand(train):
    """Algorithm 1 of the paper with torch's own optimizers: inner AdamW, outer SGD with Nesterov's momentum."""
    overrides = ("algorithm=diloco", "workers=2", "train.batch=50", "algorithm.average_every=400", "optim=adamw",
                 "optim.lr=0.01", *SMALL)  # fmt: skip
    run, config = train(*overrides), make_config(*overrides)
    task = CriteoTask(config)
    shared = build_model(config, task, group=0)
    outer = torch.optim.SGD(shared.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    models = [build_model(config, task, group=0) for _ in range(2)]
    inner = [torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=config.optim.weight_decay) for model in models]
    order = task.order(group=0, num_groups=1, examples_per_step=100, seed=derive(0, "order"))
    for step in range(12):
        for model, optimizer, ids in zip(models, inner, order.ids(step).reshape(2, -1), strict=True):
            batch = task.batch(ids, "train")
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(model(*batch.inputs), batch.targets).backward()
            optimizer.step()
        if (step + 1) % 4 == 0:
            parts = zip(shared.parameters(), *(model.parameters() for model in models), strict=True)
            for center, *own in parts:
                center.grad = center.detach() - torch.stack([one.detach() for one in own]).mean(dim=0)
            outer.step()
            for model in models:
                model.load_state_dict(shared.state_dict())
    assert_close(weights_of(run, config), shared.state_dict(), 2e-5)


def test_post_local_sgd_is_sync_while_it_is_synchronous(train):
    options = ("workers=4", "train.batch=25", "optim=adamw", "optim.lr=0.01", *SMALL)
    sync = train("algorithm=sync", *options, name="sync")
    whole = train("algorithm=post_local", "algorithm.sync_share=1", *options, name="whole")
    assert weight_hashes(whole) == weight_hashes(sync)
    half = train("algorithm=post_local", "algorithm.average_every=300", *options, name="half")
    local = train("algorithm=local_sgd", "algorithm.average_every=300", *options, name="local")
    assert len({weight_hashes(run)[0] for run in (sync, half, local)}) == 3
    first = half.metrics(kind="train").query("step == 1")["label_loss"].tolist()
    assert first == sync.metrics(kind="train").query("step == 1")["label_loss"].tolist()


def test_more_fragments_than_steps_between_agreements_are_refused(train):
    with pytest.raises(UserError, match=r"Type algorithm\.fragments=1 or less"):
        train(
            "algorithm=diloco",
            "workers=2",
            "train.batch=50",
            "algorithm.average_every=100",
            "algorithm.fragments=2",
            *SMALL,
        )


PAPA = ("algorithm=papa", *SMALL, "algorithm.burn_in=0", "train.batch=50")


def test_a_population_without_a_pull_is_the_ensemble(train):
    apart = train(*PAPA, "algorithm.pull=0", name="apart")
    assert weight_hashes(apart) == weight_hashes(train("algorithm=ensemble", *SMALL, "train.batch=50", name="ensemble"))
    pulled = train(*PAPA, "algorithm.pull=0.2", name="pulled")
    assert not set(weight_hashes(pulled)) & set(weight_hashes(apart))


def test_a_population_by_hand(train):
    """Two groups of plain SGD, pulled a fifth of the way to their mean every other step; the mean predicts, and is one."""
    overrides = (*PAPA, "algorithm.pull=0.2", *SGD, "train.max_examples=550")
    run, config = train(*overrides), make_config(*overrides)
    task = CriteoTask(config)
    models = [build_model(config, task, group=group) for group in range(2)]
    orders = [
        task.order(group=group, num_groups=2, examples_per_step=50, seed=derive(0, "order", group=group))
        for group in range(2)
    ]
    for step in range(11):
        for model, order in zip(models, orders, strict=True):
            batch = task.batch(order.ids(step), "train")
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(*batch.inputs), batch.targets)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= config.optim.lr * gradient
        means = [torch.stack(pair).mean(dim=0) for pair in zip(*(list(m.parameters()) for m in models), strict=True)]
        if (step + 1) % 2 == 0:
            with torch.no_grad():
                for model in models:
                    for parameter, mean in zip(model.parameters(), means, strict=True):
                        parameter.lerp_(mean, 0.2)
    assert_close(weights_of(run, config), models[0].state_dict(), 2e-6)
    predicting = CriteoTask(config).build_model()
    load_weights(run, 1, step=11, model=predicting, averaged=True)
    assert_close(predicting.state_dict(), dict(zip(models[0].state_dict(), means, strict=True)), 2e-6)
    averages = {group["average_hash"] for group in run.results["groups"]}
    assert len(averages) == 1
    assert run.results["metrics"] != run.results["last_weights"]


def test_a_whole_pull_makes_all_members_one(train):
    run = train(*PAPA, "algorithm.pull=1", "num_groups=3")
    assert len(set(weight_hashes(run))) == 1
    assert {group["average_hash"] for group in run.results["groups"]} == set(weight_hashes(run))


def test_what_a_population_does_not_read_is_refused(train):
    for typed in ("algorithm.distill_weight=2", "algorithm.top_k=1", "exchange.lag=1", "algorithm.strategy=local_sgd"):
        with pytest.raises(UserError, match=typed.partition("=")[0]):
            validate(make_config(*PAPA, typed))
    with pytest.raises(UserError, match=r"train\.average=groups"):
        validate(make_config("algorithm=ensemble", "train.average=groups"))
