"""Averaged weights: the averages themselves, what predicts and is published, and that training does not notice."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import StopAfter, compose, make_config, weight_hashes
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from odist.config.read import load
from odist.engine.average import STATISTICS_EXAMPLES, WeightAverage, decay_of
from odist.engine.evaluation import evaluate
from odist.errors import Damaged, Interrupted, UserError
from odist.launch import processes, results, worker
from odist.launch.check import validate
from odist.run.folder import Run
from odist.tasks.base import Batch
from odist.tasks.imagenet import ImageNetTask

SMALL = ("train.max_examples=800", "train.batch=25", "model.hidden=[16]", "model.embedding_dim=4", "train.evaluate_every=400",
         "task.synthetic.validation_rows=500")  # fmt: skip
IMAGES = ("task=imagenet", "task.size=8", "task.synthetic.rows=80", "task.synthetic.validation_rows=30", "train.batch=8",
          "train.max_examples=160", "train.passes=2", "train.evaluate_every=80")  # fmt: skip


def no_batch(step: int) -> Batch:
    raise AssertionError("only batch norms need batches")


def average_of(model: nn.Module, *, start: int = 0, decay: float | None = None) -> WeightAverage:
    return WeightAverage(model, forward=lambda *_: (torch.empty(0), None), batch_at=no_batch, start=start, decay=decay)


def walk(model: nn.Module, *, steps: int):
    """Let the weights of a model walk; the completed steps after each."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        yield step + 1


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for own, expected in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_swa_is_torchs_average():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    own, reference = average_of(model, start=5), AveragedModel(model)
    for step in walk(model, steps=12):
        own.update(step)
        if step > 5:
            reference.update_parameters(model)
    assert_same_weights(own.ready(12), reference.module)


def test_ema_is_torchs_from_zero_with_the_correction_of_adam():
    model, decay = nn.Linear(3, 4), 0.9
    own, reference = average_of(model, decay=decay), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for parameter in reference.parameters():
        parameter.data.zero_()
    reference.n_averaged.fill_(1)  # or the first update would copy the weights
    for step in walk(model, steps=7):
        own.update(step)
        reference.update_parameters(model)
    for parameter in reference.parameters():
        parameter.data /= 1 - decay**7
    assert_same_weights(own.ready(7), reference.module)


def test_before_its_start_the_weights_themselves_predict():
    model = nn.Linear(3, 4)
    own = average_of(model, start=4, decay=0.9)
    for step in walk(model, steps=5):
        own.update(step)
        assert_same_weights(own.ready(step), model)  # after the first averaged step too


def test_a_horizon_means_the_same_at_any_batch():
    once, twice = (decay_of(6400, examples_per_step=batch) for batch in (32, 64))
    assert twice == pytest.approx(once**2)
    assert once == pytest.approx(0.995, abs=1e-4)


def test_statistics_of_batch_norms_are_those_of_torchs_update():
    config = make_config(*IMAGES, "train.batch=512", "model.dropout=0.5")
    task = ImageNetTask(config)
    torch.manual_seed(3)
    model = task.build_model()
    order = task.order(group=0, num_groups=1, examples_per_step=512, seed=1)
    batches = [task.batch(order.ids(step), "train") for step in range(6)]
    own = WeightAverage(model, forward=task.forward, batch_at=lambda step: batches[step], start=0)
    for step in walk(model, steps=6):
        own.update(step)
    expected = copy.deepcopy(own.model)
    expected.dropout.p = 0.0
    newest = batches[-STATISTICS_EXAMPLES // 512 :]
    update_bn([batch.inputs[0] for batch in reversed(newest)], expected)
    averaged = own.ready(6)
    assert not averaged.training
    for name, buffer in averaged.named_buffers():
        torch.testing.assert_close(buffer, expected.get_buffer(name), msg=name)
    assert own.num_forwards == 0
    assert own.offer(6) is averaged
    assert own.num_forwards == STATISTICS_EXAMPLES


def test_training_does_not_notice_and_both_readings_are_there(train):
    plain = train(*SMALL, name="plain")
    averaged = train(*SMALL, "train.average=ema", "train.average_horizon=400", name="averaged")
    assert weight_hashes(averaged) == weight_hashes(plain)
    own = averaged.results["groups"][0]
    assert own["last_weights"] == plain.results["metrics"]
    assert own["log_loss"] != plain.results["metrics"]["log_loss"]
    rows, expected = averaged.metrics(kind="evaluate"), plain.metrics(kind="evaluate")
    assert rows["last_weights_log_loss"].tolist() == expected["log_loss"].tolist()
    assert rows["log_loss"].iloc[-1] == pytest.approx(averaged.results["metrics"]["log_loss"], abs=1e-6)
    last = np.load(averaged.prediction_root("validation") / "group-0-last-weights.npy")
    assert np.array_equal(last, np.load(plain.prediction_root("validation") / "group-0.npy"))


def test_an_ensemble_has_both_readings_too(train):
    pair = (*SMALL, "algorithm=ensemble", "train.keep_evaluations=true", "train.evaluate_rows=null")
    plain = train(*pair, name="plain")
    averaged = train(*pair, "train.average=ema", "train.average_horizon=400", name="averaged")
    assert averaged.results["last_weights"] == plain.results["metrics"]
    last = averaged.predictions("validation", last_weights=True)
    assert np.array_equal(last.probabilities, plain.predictions("validation").probabilities)
    rows, expected = (run.metrics(kind="evaluate").query("group == -1") for run in (averaged, plain))
    assert rows["last_weights_log_loss"].tolist() == expected["log_loss"].tolist()
    assert len(rows) == 2
    assert rows["log_loss"].iloc[-1] == averaged.results["metrics"]["log_loss"]


def test_eval_predicts_with_the_average(train):
    run = train(*SMALL, "train.average=swa")
    assert evaluate(run, split="validation")["log_loss"] == pytest.approx(run.results["metrics"]["log_loss"], abs=1e-9)


def test_teachers_and_first_weights_are_the_average(train):
    teacher = train(*SMALL, "train.average=swa", name="teacher")
    started = train(
        *SMALL, "train.max_examples=100", "optim.lr=1e-30", f"train.init_from={teacher.path}", name="started"
    )
    assert weight_hashes(started) == [teacher.results["groups"][0]["average_hash"]]


@pytest.mark.parametrize("include_self", ["true", "false"])
def test_published_averages_of_no_horizon_are_the_weights(train, include_self):
    pair = (
        *SMALL,
        "algorithm=codistill",
        "algorithm.burn_in=200",
        "exchange.interval=200",
        f"algorithm.include_self={include_self}",
    )
    plain = train(*pair, name="plain")
    short = train(*pair, "exchange.publish=average", "train.average=ema", "train.average_horizon=1", name="short")
    long = train(*pair, "exchange.publish=average", "train.average=ema", "train.average_horizon=800", name="long")
    assert weight_hashes(short) == weight_hashes(plain)
    assert weight_hashes(long) != weight_hashes(plain)
    heard = {swap[1] for swaps in plain.metrics(kind="train").query("group == 0")["swaps"].dropna() for swap in swaps}
    assert heard == ({0, 1} if include_self == "true" else {1})


def test_the_same_bits_in_several_processes(tmp_path):
    """With batch norms, whose statistics are estimated by one process, and groups that publish averages."""
    own = (*IMAGES, "train.batch=4", "workers=2", "algorithm=codistill", "algorithm.burn_in=16", "exchange.interval=32",
           "algorithm.include_self=true", "train.average=ema", "train.average_horizon=40", "exchange.publish=average")  # fmt: skip
    found = []
    for name, launch in {"1": ("launch=inline",), "2": ("launch=local", "launch.processes=2")}.items():
        run = Run.create(tmp_path / name, compose(*own, *launch), overrides=[], env={})
        if name == "1":
            worker.main(run)
        else:
            processes.train(run, load(run.config), stop=lambda: False)
            results.combine(run)
        found.append([(group["weight_hash"], group["average_hash"]) for group in run.results["groups"]])
        assert run.results["metrics"]["top1"] is not None
    assert found[0] == found[1]


def test_the_checkpoint_holds_both(train):
    run = train(*IMAGES, "train.average=swa", "train.average_from=0")
    folder = run.checkpoint_root(0) / "step-0000000020"
    weights, average = load_file(folder / "model.safetensors"), load_file(folder / "average.safetensors")
    assert weights.keys() == average.keys()
    assert not torch.equal(weights["fc.weight"], average["fc.weight"])


def test_what_cannot_be_meant_is_refused(train):
    with pytest.raises(UserError, match="no average to publish"):
        validate(make_config("algorithm=codistill", "exchange.publish=average"))
    with pytest.raises(UserError, match="algorithm=codistill"):
        validate(make_config("algorithm.include_self=true"))
    with pytest.raises(UserError, match="nothing would be averaged"):
        train(*SMALL, "train.average=swa", "train.average_from=800")


@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_average_is_noticed_and_an_older_checkpoint_taken(train, tmp_path, missing):
    own = (*SMALL, "train.average=ema", "train.checkpoint_every=100", "train.keep_checkpoints=2", "train.log_every=25")
    whole = train(*own, name="whole")
    with pytest.raises(Interrupted):
        train(*own, name="broken", stop=StopAfter(15))
    broken = Run(tmp_path / "broken")
    path = broken.checkpoint_root(0) / f"step-{broken.checkpoint_steps(0)[-1]:010d}" / "average.safetensors"
    damage(path, missing=missing)
    continued = train(*own, name="broken")
    hashes = [run.results["groups"][0]["average_hash"] for run in (whole, continued)]
    assert hashes[0] == hashes[1]
    damage(continued.checkpoint_root(0) / "step-0000000032" / "average.safetensors", missing=missing)
    with pytest.raises(Damaged, match=r"average\.safetensors"):
        evaluate(continued, split="validation")


def damage(path, *, missing):
    """Remove a file, or flip a bit of its last byte."""
    if missing:
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_training_rows_are_predicted_at_the_end_as_by_an_evaluation_of_them(train):
    run = train(*IMAGES, "train.average=ema", "train.training_rows=80")
    results = run.results
    again = evaluate(run, split="train")
    for name in ("top1", "cross_entropy"):
        assert results["metrics"][f"training_{name}"] == pytest.approx(again[name], rel=1e-6)
    own = results["last_weights"]["training_cross_entropy"]
    assert own != results["metrics"]["training_cross_entropy"]
    assert own == pytest.approx(results["groups"][0]["last_weights"]["training_cross_entropy"])
