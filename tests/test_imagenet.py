"""The image task: the generator, the order with its augmentation, metrics, optimiser rules, runs on any launcher."""

from __future__ import annotations

import copy
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, make_config, train_whole_and_broken, weight_hashes
from PIL import Image
from sklearn import metrics as oracle
from torch import nn

from odist.config.schema import OptimConfig, SyntheticImagesConfig
from odist.data.augment import evaluation_batch, train_batch
from odist.data.images import ImageStore
from odist.engine.checkpoint import common_step, load_weights
from odist.engine.evaluation import evaluate
from odist.errors import UserError
from odist.launch.check import validate
from odist.launch.remarks import remarks
from odist.losses import LossOptions, Soft, multiclass
from odist.measure.churn import churn
from odist.measure.images import ImageMetrics, image_results
from odist.optim import Clock, Optimizer, absolute, learning_rate, weight_decay
from odist.prepare.images.prepare import ImageOptions, prepare_imagenet
from odist.rng import derive
from odist.tasks.imagenet import ImageNetTask
from odist.tasks.synthetic_images import CLASSES, SyntheticImages

IMAGES = SyntheticImagesConfig()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ---- the generator


def test_an_image_is_a_function_of_its_number() -> None:
    generator = SyntheticImages(IMAGES, seed=3, size=16)
    together, classes = generator.images(np.array([7, 2, 10**12]), "train")
    for place, number in enumerate((7, 2, 10**12)):
        alone, own = generator.images(np.array([number]), "train")
        assert np.array_equal(alone[0], together[place])
        assert own[0] == classes[place] == generator.labels(np.array([number]), "train")[0]
    other = [
        generator.images(np.array([7]), "validation")[0],
        SyntheticImages(IMAGES, seed=4, size=16).images(np.array([7]), "train")[0],
    ]
    assert all(not np.array_equal(images[0], together[0]) for images in other)
    assert together.dtype == np.float32
    assert together.shape == (3, 3, 16, 16)


def test_classes_are_equally_frequent_and_pixels_are_normalised() -> None:
    generator = SyntheticImages(IMAGES, seed=0, size=32)
    classes = generator.labels(np.arange(20_000), "train")
    counts = np.bincount(classes, minlength=len(CLASSES))
    assert len(counts) == len(CLASSES) == 10
    assert np.abs(counts - 2000).max() < 5 * math.sqrt(2000 * 0.9)
    images, _ = generator.images(np.arange(500), "train")
    assert abs(float(images.mean())) < 1.0
    assert 0.5 < float(images.std()) < 2.0


def test_size_changes_the_resolution_and_not_the_picture() -> None:
    """Without noise an image of twice the size, averaged over 2x2 pixels, is nearly the same."""
    quiet = replace(IMAGES, noise=0.0)
    small, classes = SyntheticImages(quiet, seed=0, size=32).images(np.arange(50), "train")
    large, same = SyntheticImages(quiet, seed=0, size=64).images(np.arange(50), "train")
    assert np.array_equal(classes, same)
    shrunk = large.reshape(50, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.95


def test_noise_has_the_configured_deviation() -> None:
    made = [SyntheticImages(replace(IMAGES, noise=noise), seed=0, size=32) for noise in (0.0, 0.1)]
    quiet, noisy = (generator.images(np.arange(100), "train")[0] for generator in made)
    assert float((noisy - quiet).std()) == pytest.approx(0.4, rel=0.01)  # pixels are scaled by 4


def test_the_class_is_in_form_and_pattern_and_not_in_the_pixels_mean() -> None:
    """A linear classifier of the raw pixels and of their mean colours stays near chance; a network does not (below)."""
    generator = SyntheticImages(IMAGES, seed=0, size=12)
    images, classes = generator.images(np.arange(2000), "train")
    held_out, truth = generator.images(np.arange(1000), "validation")
    for view in (lambda x: x.reshape(len(x), -1), lambda x: x.mean(axis=(2, 3))):
        design = np.c_[view(images), np.ones(len(images))]
        weights = np.linalg.solve(design.T @ design + 10 * np.eye(design.shape[1]), design.T @ np.eye(10)[classes])
        guessed = (np.c_[view(held_out), np.ones(len(held_out))] @ weights).argmax(axis=1)
        assert (guessed == truth).mean() < 0.25


# ---- the task


def make_task(*overrides: str) -> ImageNetTask:
    return ImageNetTask(make_config("task=imagenet", *overrides))


def orders(task: ImageNetTask, num_groups: int = 2, *, per_step: int = 16, seeds: tuple[int, ...] = (0, 1)):
    return [task.order(group=g, num_groups=num_groups, examples_per_step=per_step, seed=seeds[g]) for g in range(num_groups)]  # fmt: skip


def test_every_row_is_read_once_an_epoch_with_a_new_augmentation_each_time() -> None:
    [order] = orders(make_task("task.synthetic.rows=50"), 1)
    ids = np.concatenate([order.ids(step) for step in range(10)])[:150]
    epochs = [ids[start : start + 50] for start in (0, 50, 100)]
    for epoch in epochs:
        assert sorted(epoch[:, 0].tolist()) == list(range(50))
        assert len(set(epoch[:, 1].tolist())) == 1
    assert len({int(epoch[0, 1]) for epoch in epochs}) == 3


def test_augmentation_does_not_depend_on_the_batch() -> None:
    """A row's seed in an epoch is the same at any number of examples a step."""
    task = make_task("task.synthetic.rows=50")
    for_rows = []
    for per_step in (5, 16, 25):
        [order] = orders(task, 1, per_step=per_step)
        ids = np.concatenate([order.ids(step) for step in range(100 // per_step + 1)])[:100]
        for_rows.append(ids)
    assert np.array_equal(for_rows[0], for_rows[1])
    assert np.array_equal(for_rows[0], for_rows[2])


def test_groups_crop_differently_unless_they_read_identical_rows() -> None:
    apart = [order.ids(0) for order in orders(make_task("num_groups=2"))]
    same = [order.ids(0) for order in orders(make_task("num_groups=2"), seeds=(5, 5))]
    assert not set(apart[0][:, 1].tolist()) & set(apart[1][:, 1].tolist())
    assert np.array_equal(*same)


def test_partitions_are_disjoint_and_distinct_rows_are_counted() -> None:
    same, apart = make_task("num_groups=2"), make_task("num_groups=2", "data.partition=disjoint")
    for task, together in ((same, 640), (apart, 1280)):
        first, second = ({int(i) for step in range(40) for i in order.ids(step)[:, 0]} for order in orders(task))
        assert (len(first & second) == 0) is (task is apart)
        assert len(first | second) == together == task.distinct_rows(num_groups=2, examples=640)
    assert make_task("num_groups=2", "data.partition=identical").distinct_rows(num_groups=2, examples=160) == 160


def test_the_tuning_part_is_other_images_of_the_generator() -> None:
    usual, tuning = make_task(), make_task("data.holdout=tuning")
    assert usual.fingerprint != tuning.fingerprint
    rows = np.arange(8)
    assert not torch.equal(usual.batch(rows, "validation").inputs[0], tuning.batch(rows, "validation").inputs[0])
    assert torch.equal(usual.batch(rows, "train").inputs[0], tuning.batch(rows, "train").inputs[0])


COUNTS = {"train": (30, 20, 14), "val": (4, 3, 3)}  # images of each class


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """Noise images of 16 pixels in three classes, decoded."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, counts in COUNTS.items():
        for number, count in enumerate(counts):
            (folder / part / f"class{number}").mkdir(parents=True)
            for image in range(count):
                output = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(output, "PNG")
                (folder / part / f"class{number}" / f"{image}.png").write_bytes(output.getvalue())
    prepare_imagenet([str(folder)], output=folder / "store", options=ImageOptions(decode=16, processes=1))
    return ImageStore.open(folder / "store")


def prepared(store: ImageStore, *overrides: str) -> ImageNetTask:
    return make_task("data=prepared", f"data.path='{store.path}'", "data.max_rows=null", *overrides)


def test_a_store_is_read_with_the_crops_of_image_and_epoch(store: ImageStore) -> None:
    """A step across the end of an epoch too: 64 rows, 24 a step."""
    task = prepared(store)
    [order] = orders(task, 1, per_step=24)
    for step in (0, 2):
        ids = order.ids(step)
        epochs = (24 * step + np.arange(24)) // 64
        batch = task.batch(ids, "train")
        for place in range(24):
            seed = derive(0, "augmentation", step=int(epochs[place]))
            expected = train_batch(store, ids[place : place + 1, 0], size=16, seed=seed)[0]
            assert np.array_equal(batch.inputs[0][place].numpy(), expected)
        assert np.array_equal(batch.targets.numpy(), store.labels("train")[ids[:, 0]])
    assert len(set(epochs.tolist())) == 2
    for split in ("validation", "train"):  # as evaluated: nothing is drawn
        rows = task.evaluation_order(split, rows=None, batch_size=99).ids(0)
        batch = task.batch(rows, split)
        assert len(rows) == sum(COUNTS["val" if split == "validation" else split])
        assert np.array_equal(batch.inputs[0].numpy(), evaluation_batch(store, rows, split=split, size=16))
        assert np.array_equal(batch.targets.numpy(), store.labels(split))
    assert task.prior().numpy() == pytest.approx(np.array(COUNTS["train"]) / 64)


def test_the_tuning_part_of_a_store_is_not_trained_on(store: ImageStore) -> None:
    usual, tuning = prepared(store), prepared(store, "data.holdout=tuning")
    assert (tuning.num_rows("train"), tuning.num_rows("validation")) == (56, 8)  # an eighth, fewer than validation has
    batch = tuning.batch(np.arange(8), "validation")
    assert np.array_equal(batch.inputs[0].numpy(), evaluation_batch(store, np.arange(56, 64), split="train", size=16))
    assert np.array_equal(batch.targets.numpy(), store.labels("train")[56:])
    assert tuning.fingerprint != usual.fingerprint == store.fingerprint
    assert tuning.fitted_fingerprint == usual.fitted_fingerprint
    assert prepared(store, "data.max_rows=20").num_rows("train") == 20
    later = prepared(store, "data.first_row=40", "data.max_rows=20")
    assert later.prior().numpy() == pytest.approx(np.bincount(store.labels("train")[40:60], minlength=3) / 20)


def test_threads_change_nothing(store: ImageStore) -> None:
    ids = orders(prepared(store), 1)[0].ids(0)
    batches = [prepared(store, f"task.threads={n}", "task.crop=resized").batch(ids, "train") for n in (1, 3)]
    assert torch.equal(batches[0].inputs[0], batches[1].inputs[0])


def test_metrics_and_results_agree_with_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, targets = 2 * torch.randn(400, 12), torch.randint(12, (400,))
    metrics = ImageMetrics()
    for rows in (slice(0, 150), slice(150, 400)):
        metrics.update(logits[rows], targets[rows], torch.ones(len(targets[rows])), bayes=None)
    probabilities = logits.double().softmax(dim=-1).numpy()
    expected = {
        "cross_entropy": oracle.log_loss(targets.numpy(), probabilities, labels=range(12)),
        "top1": oracle.accuracy_score(targets.numpy(), probabilities.argmax(axis=1)),
        "top5": oracle.top_k_accuracy_score(targets.numpy(), probabilities, k=5, labels=range(12)),
        "calibration_error": calibration_by_hand(probabilities, targets.numpy()),
    }
    results = image_results(probabilities, targets.numpy())
    for name, value in expected.items():
        assert metrics.result()[name] == pytest.approx(value, rel=1e-6), name
        assert results[name] == pytest.approx(value, rel=1e-9), name
    for name in ("cross_entropy", "top1", "top5"):
        assert results[f"{name}_interval"][0] < results[name] < results[f"{name}_interval"][1]
    assert not any("perplexity" in name for name in (*results, *metrics.result()))
    assert metrics.result()["rows"] == results["rows"] == 400
    assert ImageMetrics().result()["top1"] is None


def calibration_by_hand(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Expected calibration error of the top class over 15 bins."""
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    error = 0.0
    for number in range(15):
        own = (top >= number / 15) & (top < (number + 1) / 15)
        if own.any():
            error += own.mean() * abs(top[own].mean() - right[own].mean())
    return error


# ---- optimiser rules of this recipe


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


def gradients(model: nn.Module, step: int) -> None:
    made = torch.Generator().manual_seed(step)
    images, targets = torch.randn(6, 3, 8, 8, generator=made), torch.randint(5, (6,), generator=made)
    model.zero_grad()
    F.cross_entropy(model(images), targets).backward()


CLOCK = Clock(64, 100)


def test_shares_and_scaling_become_absolute() -> None:
    config = OptimConfig(name="sgd", lr=0.1, lr_per=32, schedule="steps", warmup_share=0.05, warmup_from=0.1,
                         milestone_shares=[0.3, 0.6, 0.8])  # fmt: skip
    fixed = absolute(config, clock=CLOCK)
    assert (fixed.lr, fixed.warmup, fixed.milestones) == (0.2, 320, [1920, 3840, 5120])
    assert absolute(fixed, clock=CLOCK) == fixed
    rates = [learning_rate(fixed, examples, horizon=6400) for examples in (0, 159, 319, 320, 1919, 1920, 3840, 5120)]
    assert rates == pytest.approx([0.1 + 0.1 / 320, 0.15, 0.2, 0.2, 0.2, 0.02, 0.002, 0.0002])
    optimizer = Optimizer(small_network(), config, clock=CLOCK)
    gradients(optimizer.model, 0)
    optimizer.update(30)
    assert optimizer.last_lr == pytest.approx(0.02)
    assert optimizer.twin().config == fixed


def test_the_papers_schedule() -> None:
    """Goyal et al. 2017 at 16,384 images a step; steps as in Anil et al.: warm-up 391, drops at 2,346, 4,692 and 6,256."""
    config = make_config("task=imagenet", "scale=paper", "data=synthetic")
    clock = Clock(config.workers * config.train.batch, 90 * 1_281_167 // 16_384)
    fixed = absolute(config.optim, clock=clock)
    assert (clock.examples_per_step, clock.num_steps) == (16_384, 7_037)
    assert fixed.lr == pytest.approx(6.4)
    assert [round(n / 16_384) for n in (fixed.warmup, *fixed.milestones)] == [391, 2346, 4691, 6255]
    assert learning_rate(fixed, 0, horizon=clock.horizon) == pytest.approx(0.1, abs=1e-5)
    assert (fixed.momentum, fixed.nesterov, fixed.weight_decay, fixed.decay_vectors) == (0.9, True, 1e-4, False)
    assert clock.steps(config.algorithm.burn_in) == 3000
    assert (config.model.name, config.model.depth, config.train.passes, config.task.size) == ("resnet", 50, 90, 224)  # type: ignore[attr-defined]


def test_weight_decay_spares_vectors_and_follows_its_schedule() -> None:
    """Sodhani et al. 2020: 1e-1, then 1e-2, then 0; against torch's SGD with groups of its own."""
    config = OptimConfig(name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, weight_decays=[0.01, 0.0],
                         decay_vectors=False, schedule="steps", milestone_shares=[0.03, 0.05], decay=1.0)  # fmt: skip
    fixed = absolute(config, clock=CLOCK)
    assert [weight_decay(fixed, examples) for examples in (0, 191, 192, 319, 320)] == [0.1, 0.1, 0.01, 0.01, 0.0]
    model, plain = small_network(), small_network()
    optimizer = Optimizer(model, config, clock=CLOCK)
    groups = [[p for p in plain.parameters() if p.ndim > 1], [p for p in plain.parameters() if p.ndim == 1]]
    other = torch.optim.SGD([{"params": part} for part in groups], lr=0.1, momentum=0.9, nesterov=True)
    for step in range(8):
        gradients(model, step)
        gradients(plain, step)
        other.param_groups[0]["weight_decay"] = 0.1 if step < 3 else 0.01 if step < 5 else 0.0
        optimizer.update(step)
        other.step()
    for left, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def test_lars_is_the_papers_rule() -> None:
    """You et al. 2017, algorithm 1, in float64 numpy; vectors move as by SGD without decay."""
    config = OptimConfig(name="lars", lr=2.0, momentum=0.9, trust=0.01, weight_decay=0.1, decay_vectors=False)
    model = small_network()
    optimizer = Optimizer(model, config, clock=CLOCK)
    weights = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    speeds = {name: np.zeros_like(value) for name, value in weights.items()}
    for step in range(5):
        gradients(model, step)
        for name, parameter in model.named_parameters():
            gradient, own = parameter.grad.double().numpy(), weights[name]
            if own.ndim > 1:
                norm = np.linalg.norm(own)
                gradient = 0.01 * norm / (np.linalg.norm(gradient) + 0.1 * norm) * (gradient + 0.1 * own)
            speeds[name] = 0.9 * speeds[name] + gradient
            weights[name] = own - 2.0 * speeds[name]
        optimizer.update(step)
    for name, parameter in model.named_parameters():
        assert parameter.detach().numpy() == pytest.approx(weights[name], rel=1e-4, abs=1e-6), name


def test_lars_leaves_weights_of_norm_zero_to_sgd() -> None:
    model = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = Optimizer(model, OptimConfig(name="lars", lr=0.5, trust=0.01), clock=CLOCK)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.update(0)
    assert torch.equal(model.weight, torch.full((2, 3), -0.5))


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_another_memory_format_gives_the_same_update(name: str) -> None:
    """A gradient that came from several processes is contiguous whatever its parameter is; torch's kernels expect one."""
    updated = []
    for weights, gradient in ((torch.channels_last, torch.contiguous_format), (torch.contiguous_format,) * 2):
        torch.manual_seed(0)
        model = nn.Conv2d(4, 6, 3).to(memory_format=weights)
        optimizer = Optimizer(model, OptimConfig(name=name, lr=0.1, momentum=0.9, clip_norm=1.0), clock=CLOCK)
        for _ in range(3):
            model.weight.grad = torch.randn(6, 4, 3, 3).contiguous(memory_format=gradient)
            model.bias.grad = torch.randn(6)
            optimizer.update(0)
        updated.append(model.weight.detach().contiguous())
    assert torch.equal(*updated)


@pytest.mark.parametrize("options", [{"name": "lars"}, {"name": "sgd", "weight_decays": [0.01]}], ids=str)
def test_saved_state_continues_in_the_same_bits(options: dict) -> None:
    config = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.1, decay_vectors=False, schedule="steps", milestones=[192],
                         **options)  # fmt: skip
    model = small_network()
    optimizer = Optimizer(model, config, clock=CLOCK)
    for step in range(6):
        if step == 4:  # after the change
            state, model = copy.deepcopy((optimizer.state_dict(), model))
            other = Optimizer(model, config, clock=CLOCK)
            other.load_state_dict(state)
        gradients(optimizer.model, step)
        optimizer.update(step)
    for step in (4, 5):
        gradients(model, step)
        other.update(step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), optimizer.model.parameters(), strict=True))


# ---- runs

QUICK = ("task=imagenet", "task.size=8", "task.synthetic.rows=80", "task.synthetic.validation_rows=30", "train.batch=8",
         "train.evaluate_every=0", "train.checkpoint_every=0", "train.log_every=16", "algorithm.burn_in=24",
         "exchange.interval=16", "algorithm.average_every=32")  # fmt: skip


def test_codistillation_equals_a_plain_loop(train) -> None:
    """Teachers are copies with their running statistics, in eval mode; each worker starts from the same statistics."""
    overrides = (*QUICK, "algorithm=codistill", "workers=2", "train.batch=4", "seed=5", "optim.lr_per=null",
                 "optim.schedule=constant", "optim.milestone_shares=[]", "optim.warmup_share=0")  # fmt: skip
    run, config = train(*overrides), make_config(*overrides)
    task = ImageNetTask(config)
    models, row_orders, optimizers = [], [], []
    for group in range(2):
        torch.manual_seed(derive(5, "init", group=group))
        models.append(task.build_model())
        seed = derive(5, "order", group=group)
        row_orders.append(task.order(group=group, num_groups=2, examples_per_step=8, seed=seed))
        matrices = [p for p in models[-1].parameters() if p.ndim > 1]
        vectors = [p for p in models[-1].parameters() if p.ndim == 1]
        parts = [{"params": matrices, "weight_decay": config.optim.weight_decay}, {"params": vectors}]
        optimizers.append(torch.optim.SGD(parts, lr=config.optim.lr, momentum=0.9, nesterov=True, fused=True))
    teachers = []
    for step in range(10):
        if step >= 2 and step % 2 == 0:
            teachers = [copy.deepcopy(model).eval() for model in models]
        for group, model in enumerate(models):
            before = {name: buffer.clone() for name, buffer in model.named_buffers()}
            after, totals = [], []
            for ids in np.split(row_orders[group].ids(step), 2):
                for name, buffer in model.named_buffers():
                    buffer.copy_(before[name])
                batch = task.batch(ids, "train").to("cpu")
                soft = None
                if step >= 3:
                    with torch.no_grad():
                        soft = Soft((teachers[1 - group](batch.inputs[0]),))
                sums = multiclass(
                    model(batch.inputs[0]), batch.targets, weights=batch.weights, options=LossOptions(), soft=soft
                )
                model.zero_grad()
                (sums.total / 8).backward()
                totals.append([p.grad.clone() for p in model.parameters()])
                after.append({name: buffer.clone() for name, buffer in model.named_buffers()})
            for parameter, first, second in zip(model.parameters(), *totals, strict=True):
                parameter.grad = first + second
            for name, buffer in model.named_buffers():
                buffer.copy_((after[0][name] + after[1][name]) / 2)
        for optimizer in optimizers:
            optimizer.step()
    for group, model in enumerate(models):
        trained = task.build_model()
        load_weights(run, group, step=common_step(run, range(2)), model=trained)
        for name, value in model.state_dict().items():
            assert torch.equal(value, trained.state_dict()[name]), name


@pytest.mark.parametrize("scale", ["smoke", "small", "medium", "paper"])
def test_resnet50_is_one_at_every_scale(scale: str) -> None:
    model = make_config("task=imagenet", "model=resnet50", f"scale={scale}").model
    assert (model.name, model.depth) == ("resnet", 50)


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        pytest.param((1, 2, 4), ["algorithm=codistill", "exchange=store"], marks=pytest.mark.slow),
        ((2,), ["optim=lars", "optim.clip_norm=0.5", "model.channels_last=true", "model.bf16=true"]),
    ],
    ids=["codistill", "lars-bf16"],
)
def test_the_same_bits_in_any_number_of_processes(train, counts: tuple[int, ...], options: list[str]) -> None:
    """Batch norm, its running statistics and everything else, by groups in turns (0) and by real processes."""
    overrides = [*QUICK, "workers=4", "train.batch=2", *options]
    hashes = []
    for count in (0, *counts):
        words = [*overrides, *(["launch=local", f"launch.processes={count}"] if count else [])]
        hashes.append(weight_hashes(train(*words, name=str(count))))
    assert all(own == hashes[0] for own in hashes)
    assert len(set(hashes[0])) == len(hashes[0])


def test_what_is_stored_is_evaluated_and_churns(train, tmp_path: Path) -> None:
    runs = [train(*QUICK, f"seed={seed}", name=f"s{seed}") for seed in range(3)]
    stored = [run.predictions() for run in runs]
    assert stored[0].probabilities.shape == (30, 10)
    assert stored[0].probabilities.sum(axis=1) == pytest.approx(np.ones(30), abs=1e-5)
    again = evaluate(runs[0], split="validation", output=tmp_path / "p.csv")
    assert again["cross_entropy"] == runs[0].results["metrics"]["cross_entropy"]
    table = np.genfromtxt(tmp_path / "p.csv", delimiter=",", names=True)
    own = np.stack([table[f"prediction_{c}"] for c in range(10)], axis=1)
    own /= own.sum(axis=1, keepdims=True)  # of float32
    truth = table["label"].astype(int)
    assert again["cross_entropy"] == pytest.approx(oracle.log_loss(truth, own, labels=range(10)), rel=1e-5)
    result = churn([each.probabilities for each in stored], targets=stored[0].targets)
    flips = np.mean([(stored[i].probabilities.argmax(1) != stored[j].probabilities.argmax(1)).mean()
                     for i, j in ((0, 1), (0, 2), (1, 2))])  # fmt: skip
    assert result.metrics["flips"] == pytest.approx(flips)
    assert result.metrics["cross_entropy"] == pytest.approx(
        np.mean([run.results["metrics"]["cross_entropy"] for run in runs])
    )


def test_a_prepared_store_is_trained_on_stopped_continued_and_evaluated(
    train, store: ImageStore, tmp_path: Path
) -> None:
    words = ["task=imagenet", "data=prepared", f"data.path='{store.path}'", "data.max_rows=null", "train.passes=1.5",
             "train.batch=8", "algorithm=codistill", "algorithm.burn_in=16", "exchange.interval=16"]  # fmt: skip
    whole, _ = train_whole_and_broken(train, *words, stops=(9,))
    assert whole.predictions().probabilities.shape == (10, 3)
    again = evaluate(whole, split="validation", data=store.path)
    assert again["cross_entropy"] == whole.results["metrics"]["cross_entropy"]
    assert evaluate(whole, split="train")["rows"] == 64
    assert whole.results["distinct_examples"] == 64


def test_real_photographs_are_prepared_and_trained_on(train, tmp_path: Path) -> None:
    path = SHARED / "imagenet" / "imagenet-sample.tar"
    if not path.is_file():
        pytest.skip(f"real data not present: {path.relative_to(SHARED.parent.parent)}")
    prepare_imagenet([str(path)], output=tmp_path / "store", options=ImageOptions(processes=1))
    run = train(
        "task=imagenet", "data=prepared", f"data.path='{tmp_path / 'store'}'", "data.max_rows=32", "task.size=32"
    )
    assert run.predictions().probabilities.shape == (72, 72)
    assert run.results["metrics"]["rows"] == 72
    assert run.results["metrics"]["cross_entropy"] == pytest.approx(math.log(72), rel=0.2)


def test_an_ensemble_predicts_with_the_mean_probability(train) -> None:
    run = train(*QUICK, "algorithm=ensemble")
    members = [np.load(run.prediction_root("validation") / f"group-{group}.npy").astype(np.float64) for group in (0, 1)]
    expected = image_results(np.mean(members, axis=0), run.predictions().targets)
    assert run.results["metrics"]["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-9)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=mlp"], "Choose model=resnet"),
        (["model.depth=34"], "model.depth=34: choose|model.depth=34"),
        (["task.crop=big"], "task.crop=big"),
        (["task.size=0"], "task.size=0"),
        (["optim.lr_per=0"], "optim.lr_per=0"),
        (["optim.milestones=[100]"], "give one of"),
        (["optim.warmup=10"], "give one of"),
        (["optim.milestone_shares=[0.5,0.2]"], "rising"),
        (["optim.milestone_shares=[0.5,1.5]"], "from 0 to 1"),
        (["optim.schedule=cosine"], r"Add optim\.milestone_shares=\[\]"),
        (["optim.weight_decays=[1e-5]"], "one for each of the 3"),
        (["optim=adamw", "optim.momentum=0.9"], "only optim=sgd and optim=lars"),
        (["data=prepared"], "odist prepare imagenet"),
    ],
)
def test_what_validate_refuses(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(make_config("task=imagenet", *overrides))


def test_a_teacher_that_is_never_heard_is_remarked_upon() -> None:
    assert remarks(make_config("task=imagenet", "algorithm=codistill")) == []
    [remark] = remarks(make_config("task=imagenet", "algorithm=codistill", "task.synthetic.rows=100"))
    assert "never heard" in remark


def test_a_small_network_on_large_images_is_remarked_upon(tmp_path: Path) -> None:
    def said(decoded: int | None, *overrides: str) -> list[str]:
        (tmp_path / "store.json").write_text(json.dumps({"format": "x", "task": "imagenet", "decoded": decoded}))
        return remarks(make_config("task=imagenet", "data=prepared", f"data.path={tmp_path}", *overrides))

    [remark] = said(None)
    assert "model.depth=8" in remark
    assert "these have 224" in remark
    assert said(96, "model.depth=20")
    assert said(64) == said(None, "task.size=32") == said(None, "model.depth=50") == said(None, "model.depth=18") == []
