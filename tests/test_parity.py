"""The trainer against plain loops written out by hand: equal bits."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from conftest import make_config

from odist.engine.checkpoint import common_step, load_weights
from odist.models.mlp import EmbeddingMLP
from odist.rng import derive
from odist.tasks.criteo import CriteoTask

SMALL = ("train.max_examples=600", "train.batch=50", "algorithm.burn_in=200", "exchange.interval=100")


def trained(run, config, group):
    task = CriteoTask(config)
    model = task.build_model()
    load_weights(run, group, step=common_step(run, range(config.num_groups)), model=model)
    return model.state_dict()


def assert_equal_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def optimisers(model, lr):
    """Adagrad as torch has it: fused for the dense part, sparse for the table."""
    model.embedding.sparse = True
    dense = [*model.tower.parameters(), *model.output.parameters()]
    options = {"lr": lr, "eps": 1e-8}
    return [
        torch.optim.Adagrad(dense, fused=True, **options),
        torch.optim.Adagrad(model.embedding.parameters(), **options),
    ]


def plain_group(config, task, group):
    torch.manual_seed(derive(config.seed, "init", group=group))
    size = config.model
    model = EmbeddingMLP(
        26, 26, buckets=task.source.num_ids, embedding_dim=size.embedding_dim, hidden=size.hidden, dropout=0.0
    )
    order = task.order(
        group=group,
        num_groups=config.num_groups,
        examples_per_step=config.train.batch,
        seed=derive(config.seed, "order", group=group),
    )
    return model, order, optimisers(model, config.optim.lr)


def test_sync_equals_a_plain_loop(train):
    torch.set_num_threads(1)
    overrides = ("algorithm=sync", "seed=3", *SMALL)
    run, config = train(*overrides), make_config(*overrides)
    task = CriteoTask(config)
    model, order, parts = plain_group(config, task, 0)
    for step in range(12):
        batch = task.batch(order.ids(step), "train")
        loss = F.binary_cross_entropy_with_logits(model(*batch.inputs), batch.targets, reduction="sum") / 50
        model.zero_grad()
        loss.backward()
        for part in parts:
            part.step()
    assert_equal_bits(trained(run, config, 0), model.state_dict())


def test_codistillation_equals_a_plain_loop(train):
    torch.set_num_threads(1)
    overrides = ("algorithm=codistill", "num_groups=3", "seed=5", *SMALL)
    run, config = train(*overrides), make_config(*overrides)
    task = CriteoTask(config)
    groups = [plain_group(config, task, group) for group in range(3)]
    teachers = {}
    for step in range(12):
        if step >= 4 and step % 2 == 0:
            teachers = {group: copy.deepcopy(groups[group][0]).eval() for group in range(3)}
        for group, (model, order, parts) in enumerate(groups):
            batch = task.batch(order.ids(step), "train")
            logits = model(*batch.inputs)
            loss = F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="sum")
            if step >= 4:
                with torch.no_grad():
                    first, second = (teachers[peer](*batch.inputs) for peer in range(3) if peer != group)
                soft = (torch.sigmoid(first) + torch.sigmoid(second)) / 2
                loss = loss + F.binary_cross_entropy_with_logits(logits, soft, reduction="sum")
            model.zero_grad()
            (loss / 50).backward()
            for part in parts:
                part.step()
    for group, (model, _, _) in enumerate(groups):
        assert_equal_bits(trained(run, config, group), model.state_dict())
