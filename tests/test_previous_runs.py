"""Finished runs that a new one builds on, as teachers and as first weights: which fit, and on which device they compute."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import StopAfter, compose, make_config, weight_hashes
from PIL import Image
from safetensors.torch import load_file
from test_cli import SMOKE, criteo_rows, odist, refused
from test_prepare_text import story, write_json

from odist.config.identity import config_hash
from odist.data.images import ImageStore
from odist.errors import Interrupted, UserError
from odist.launch.launch import prepare_config
from odist.launch.opening import content_of
from odist.launch.remarks import remarks
from odist.prepare.criteo.prepare import CriteoOptions, prepare_criteo
from odist.prepare.images.prepare import ImageOptions, prepare_imagenet
from odist.prepare.text.prepare import TextOptions, prepare_text
from odist.run.folder import Run

SHORT = ("train.max_examples=300", "train.batch=20")
STILL = ("optim=sgd", "optim.lr=1e-300", "train.max_examples=20", "train.batch=20")  # steps that change no weight


def day_of_criteo(folder: Path, *, seed: int, like: Path | None = None) -> Path:
    """A store of 160 training rows and 40 validation rows; each seed has its own, with fitted parts of their own unless `like`."""
    rows = criteo_rows(folder.with_suffix(".txt"), rows=200, seed=seed)
    options = CriteoOptions(buckets=None if like else 500, validation_fraction=0.2)
    prepare_criteo([str(rows)], output=folder, like=like, options=options)
    return folder


def day_of_text(folder: Path, *, seed: int, like: Path | None = None) -> Path:
    texts = write_json(folder.with_suffix(".jsonl.gz"), [story(100 * seed + number) for number in range(16)])
    options = TextOptions(processes=1, vocabulary=None if like else 120, validation_fraction=0.2)
    prepare_text([str(texts)], output=folder, like=like, options=options)
    return folder


def day_of_images(folder: Path, *, seed: int, like: Path | None = None) -> Path:
    """Twenty-five images in each of two classes, whose names follow the seed unless `like`."""
    random, classes = np.random.default_rng(seed), ImageStore.open(like).classes if like else [f"a{seed}", f"b{seed}"]
    raw = folder.with_suffix(".raw")
    for name in classes:
        (raw / name).mkdir(parents=True)
        for number in range(25):
            Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(raw / name / f"{number}.png")
    options = ImageOptions(decode=32, validation_fraction=0.2, processes=1)
    prepare_imagenet([str(raw)], output=folder, like=like, options=options)
    return folder


DAYS: dict[str, Callable[..., Path]] = {"criteo": day_of_criteo, "lm": day_of_text, "imagenet": day_of_images}


def on(store: Path, task: str) -> tuple[str, ...]:
    return (f"task={task}", "data=prepared", f"data.path={store}")


# ---- teachers


@pytest.mark.parametrize("task", DAYS)
def test_a_run_of_another_day_teaches_though_its_store_is_gone(train, tmp_path: Path, task: str) -> None:
    yesterday = DAYS[task](tmp_path / "yesterday", seed=1)
    today = DAYS[task](tmp_path / "today", seed=2, like=yesterday)
    teacher = train(*on(yesterday, task), *SHORT, "seed=3", name="teacher")
    shutil.rmtree(yesterday)
    distill = ("algorithm=distill", f"algorithm.teachers=[{teacher.path}]")
    taught = train(*on(today, task), *SHORT, *distill, name="taught")
    assert taught.env["data_fingerprint"] != teacher.env["data_fingerprint"]
    assert taught.metrics(kind="train")["distill_loss"].iloc[-1] > 0
    other = DAYS[task](tmp_path / "other", seed=3)
    with pytest.raises(
        UserError, match=rf"fitted parts \w+ there, \w+ here\)\. Prepare this run's data with --like {yesterday}"
    ):
        train(*on(other, task), *SHORT, *distill, name="refused")


def test_a_run_is_evaluated_on_another_day_though_its_store_is_gone(train, tmp_path: Path) -> None:
    yesterday = day_of_criteo(tmp_path / "yesterday", seed=1)
    today = day_of_criteo(tmp_path / "today", seed=2, like=yesterday)
    train(*on(yesterday, "criteo"), *SHORT, name="run")
    shutil.rmtree(yesterday)
    done = odist("eval", "run", "--data", today, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    other = day_of_criteo(tmp_path / "other", seed=3)
    refused(odist("eval", "run", "--data", other, cwd=tmp_path), "different vocabularies", "--like")


@pytest.mark.parametrize("task", DAYS)
def test_synthetic_teachers_need_the_same_generator_and_not_the_same_rows(train, task: str) -> None:
    teacher = train(f"task={task}", *SHORT, "data.holdout=tuning", name="teacher")
    distill = (f"task={task}", *SHORT, "algorithm=distill", f"algorithm.teachers=[{teacher.path}]")
    taught = train(*distill, "task.synthetic.validation_rows=64", name="taught")
    assert taught.finished
    with pytest.raises(UserError, match="Train a teacher on the same data"):
        train(*distill, "data.seed=1", name="refused")


def test_a_teacher_that_has_seen_the_evaluated_rows_is_told(train, tmp_path: Path) -> None:
    store = day_of_criteo(tmp_path / "store", seed=1)
    seen = train(*on(store, "criteo"), *SHORT, name="seen")
    fair = train(*on(store, "criteo"), *SHORT, "data.holdout=tuning", name="fair")
    fingerprint = content_of(make_config(*on(store, "criteo")))["data.path"]
    for run in (seen, fair):  # as `odist train` writes it
        run.write_json("env.json", {**run.env, "data_fingerprint": fingerprint})
    config = make_config(*on(store, "criteo"), "data.holdout=tuning", "algorithm=distill",
                         f"algorithm.teachers=[{seen.path},{fair.path}]")  # fmt: skip
    (said,) = remarks(config)
    assert str(seen.path) in said
    assert "data.holdout=tuning evaluates" in said
    config.data.holdout = "validation"
    assert remarks(config) == []


# ---- devices


needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")


def pretend_cuda(run: Run) -> None:
    """Make a finished run look as if it had been trained on a GPU."""
    content = {**run.config, "launch": {**run.config["launch"], "device": "cuda"}}
    (run.path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@needs_no_cuda
def test_a_device_that_is_not_there_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    done = odist("train", *SMOKE, "launch.device=cuda", "run.dir=run", cwd=tmp_path)
    refused(done, "launch.device=cuda: torch", "Type launch.device=cpu")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@needs_no_cuda
@pytest.mark.parametrize("task", DAYS)
def test_a_run_of_a_gpu_is_evaluated_and_teaches_without_one(train, tmp_path: Path, task: str) -> None:
    run = train(f"task={task}", *SHORT, name="run")
    before = odist("eval", "run", "--json", cwd=tmp_path)
    pretend_cuda(run)
    done = odist("eval", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == before.stdout
    assert "trained on cuda, which this machine does not have; evaluated on cpu" in done.stderr
    assert before.stderr == odist("eval", "run", "--device", "cpu", "--json", cwd=tmp_path).stderr == ""
    refused(odist("eval", "run", "--device", "cuda", cwd=tmp_path), "--device cuda", "Type --device cpu")
    taught = train(f"task={task}", *SHORT, "algorithm=distill", f"algorithm.teachers=[{run.path}]", name="taught")
    assert taught.finished


# ---- first weights


def weights(run: Run, group: int = 0) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint_root(group) / f"step-{run.checkpoint_steps(group)[-1]:010d}" / "model.safetensors")


@pytest.mark.parametrize("task", DAYS)
def test_a_run_starts_from_the_weights_of_another(train, task: str) -> None:
    source = train(f"task={task}", *SHORT, name="source")
    begun = train(f"task={task}", *STILL, f"train.init_from={source.path}", "seed=7", name="begun")
    other = train(f"task={task}", *STILL, "seed=7", name="other")
    for name, tensor in weights(source).items():
        if "running" not in name and "num_batches" not in name:  # of batch norms, which follow the batches
            assert torch.equal(tensor, weights(begun)[name])
    assert any(not torch.equal(tensor, weights(other)[name]) for name, tensor in weights(source).items())


@pytest.mark.parametrize(("there", "here", "sources"), [(2, 2, [0, 1]), (1, 2, [0, 0]), (3, 2, [0, 0]), (2, 1, [0])])
def test_each_group_starts_from_the_group_of_its_number_or_all_from_group_0(train, there, here, sources) -> None:
    source = train("algorithm=ensemble", f"num_groups={there}", *SHORT, name="source")
    options = ("algorithm=ensemble", f"num_groups={here}", *STILL, f"train.init_from={source.path}")
    begun = train(*options, name="begun")
    assert weight_hashes(begun) == [weight_hashes(source)[group] for group in sources]
    (said,) = remarks(make_config(*options))
    assert str(source.path) in said
    assert ("the same number" in said) is (there == here > 1)
    assert "optimizer state, schedule and steps start afresh" in said


@pytest.mark.parametrize("options", [
    ("algorithm=codistill", "exchange.interval=60", "algorithm.burn_in=60"),
    ("algorithm=delayed", "workers=2"),
    ("algorithm=local_sgd", "workers=2", "algorithm.average_every=80"),
], ids=lambda options: options[0])  # fmt: skip
def test_a_run_with_first_weights_continues_to_the_same_bits_without_its_source(train, tmp_path, options) -> None:
    source = train(*SHORT, name="source")
    overrides = (*options, *SHORT, f"train.init_from={source.path}")
    whole = train(*overrides, name="whole")
    assert weight_hashes(whole) != weight_hashes(train(*options, *SHORT, name="plain"))
    with pytest.raises(Interrupted):
        train(*overrides, name="broken", stop=StopAfter(3))
    shutil.rmtree(source.path)
    assert weight_hashes(train(*overrides, name="broken")) == weight_hashes(whole)


def test_processes_start_from_the_same_weights(train) -> None:
    source = train("algorithm=ensemble", *SHORT, name="source")
    overrides = ("algorithm=codistill", "exchange=store", *SHORT, "algorithm.burn_in=60", "exchange.interval=60",
                 f"train.init_from={source.path}")  # fmt: skip
    inline = train(*overrides, name="inline")
    assert weight_hashes(train(*overrides, "launch=local", name="local")) == weight_hashes(inline)


@pytest.mark.parametrize(("task", "other", "tensor"), [
    ("criteo", "model.hidden=[8]", "is [8, "),
    ("lm", "model.embedding_dim=24", "embedding"),
    ("lm", "model=transformer", "missing"),
    ("imagenet", "model.depth=20", "more tensors"),
])  # fmt: skip
def test_first_weights_of_another_model_are_refused_by_naming_tensors(train, tmp_path, task, other, tensor) -> None:
    source = train(f"task={task}", *STILL, name="source")
    done = odist("train", f"task={task}", *SMOKE, f"train.init_from={source.path}", other, "run.dir=run", cwd=tmp_path)
    refused(done, f"train.init_from: {source.path}", "holds other weights than those of the model", tensor)
    assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "run").exists()


def test_first_weights_of_another_number_of_classes_are_refused(train, tmp_path: Path) -> None:
    source = train("task=imagenet", *STILL, name="source")  # ten classes
    store = day_of_images(tmp_path / "store", seed=1)
    with pytest.raises(UserError, match=r"fc.weight is \[10, 64\] there, \[2, 64\] here"):
        train(*on(store, "imagenet"), *STILL, f"train.init_from={source.path}", name="run")


def test_what_is_no_finished_run_of_the_task_gives_no_first_weights(train, tmp_path: Path) -> None:
    source = train(*STILL, name="source")
    said = {"nowhere": "no such run folder", ".": "not a run folder", "source": "task=criteo, this one of task=lm"}
    for path, words in said.items():
        done = odist("train", "task=lm", *SMOKE, f"train.init_from={path}", "run.dir=run", cwd=tmp_path)
        refused(done, words)
    source.set_status(state="interrupted")
    refused(
        odist("train", *SMOKE, "train.init_from=source", "run.dir=run", cwd=tmp_path),
        "not finished (state interrupted)",
    )
    assert not (tmp_path / "run").exists()


def test_first_weights_are_part_of_what_a_run_is_and_their_place_is_not(train, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        config = prepare_config(compose(f"train.init_from={path}"))
        return config_hash(config, content=content_of(config))

    source, other = train(*STILL, name="source"), train(*STILL, "seed=1", name="other")
    first = digest(source.path)
    assert first not in (digest(other.path), config_hash(make_config()))
    assert digest(Path(shutil.copytree(source.path, tmp_path / "moved"))) == first


# ---- a run whose predictions are worth no more than a constant


@pytest.mark.parametrize(("task", "lr"), [("criteo", 1e9), ("lm", 1e4), ("imagenet", 30.0)])
def test_a_run_no_better_than_a_constant_prediction_says_so(tmp_path: Path, task: str, lr: float) -> None:
    options = [f"task={task}", *SMOKE, *SHORT, "optim=sgd", f"optim.lr={lr}", "optim.clip_norm=null", "run.dir=dead"]
    done = odist("train", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = Run.open(tmp_path / "dead").results
    ((name, constant),) = results["constant_prediction"].items()
    assert results["metrics"][name] >= constant
    (remark,) = results["remarks"]
    assert remark.startswith(f"{name} {results['metrics'][name]:.5f} is no better than a constant prediction")
    assert f"note: dead: {remark}" in done.stderr


def test_a_run_that_has_learnt_says_nothing_of_the_kind(train) -> None:
    run = train(name="alive")
    rate = run.results["metrics"]["base_rate"]
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert run.results["constant_prediction"]["log_loss"] == pytest.approx(entropy, abs=0.01)
    assert run.results["remarks"] == []
