"""The schema, its checks and its hash, and every file of conf/."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from odist.config.identity import FREE_KEYS, config_hash, differences, flatten, to_dict
from odist.config.read import SchemaKey, known_keys, load, presets, register, schema_keys
from odist.config.schema import Config
from odist.errors import UserError
from odist.launch.check import MODELS_OF_TASKS, validate
from odist.launch.launch import prepare_config
from odist.launch.opening import content_of
from odist.launch.remarks import remarks
from odist.run.folder import Run

CONF = Path(__file__).resolve().parent.parent / "conf"
ALGORITHMS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    from hydra import initialize_config_dir

    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@functools.cache
def composed(*overrides: str) -> str:
    from hydra import compose
    from omegaconf import OmegaConf

    return json.dumps(OmegaConf.to_container(compose("config", list(overrides)), resolve=True))


def compose(*overrides: str) -> dict[str, Any]:
    return dict(json.loads(composed(*overrides)))


def chosen(*overrides: str) -> dict[str, str]:
    from hydra import compose

    return dict(compose("config", list(overrides), return_hydra_config=True).hydra.runtime.choices)


FIRST_HASH = (
    "ec67a20e027b7a988489f1ba6ad8683fd621d8e63fc6989c457301b2f5abcad0"  # of scale=smoke when runs were first hashed
)


@pytest.fixture
def smoke() -> Config:
    return load(compose("scale=smoke"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "store.json").write_text(json.dumps({"format": "x", "task": "criteo", "fingerprint": "f" * 64}))
    return folder


def finished_run(path: Path, *, digest: str = "d" * 64, state: str = "finished") -> Path:
    run = Run.create(path, to_dict(load(compose("scale=smoke"))), overrides=[], env={"config_hash": digest})
    run.set_status(state=state)
    run.write_json("results.json", {"metrics": {}, "groups": [], "split": "validation"})
    return path


def needed(tmp_path: Path, store: Path, overrides: list[str]) -> list[str]:
    """`overrides` with what `algorithm=distill` and `data=prepared` need besides."""
    more = []
    if "algorithm=distill" in overrides:
        more.append(f"algorithm.teachers=['{finished_run(tmp_path / 'teacher')}']")
    if "data=prepared" in overrides:
        task = next((word.partition("=")[2] for word in overrides if word.startswith("task=")), "criteo")
        (store / "store.json").write_text(json.dumps({"format": "x", "task": task, "fingerprint": "f" * 64}))
        more.append(f"data.path='{store}'")
    return [*overrides, *more]


TASK_OF = {model: task for task, models in MODELS_OF_TASKS.items() for model in models}
TASK_OF["resnet50"] = "imagenet"  # a file of its own for a network that `resnet` also gives


def selection(group: str, name: str) -> list[str]:
    """The choices that make Hydra read a file of conf/ or a row of a table in conf/presets/."""
    if group == "preset":
        task, data, scale = name.split("-")
        return [f"task={task}", f"data={data}", f"scale={scale}"]
    if group == "size":
        model, data, scale = name.split("-")
        return [f"task={TASK_OF[model]}", f"model={model}", f"data={data}", f"scale={scale}"]
    if group == "model":
        return [f"task={TASK_OF[name]}", f"model={name}"]
    if group == "rate":
        optim, task, data, scale = name.split("-")
        return [f"optim={optim}", f"task={task}", f"data={data}", f"scale={scale}"]
    return [f"{group}={name}"]


FILES = sorted(CONF.rglob("*.yaml"))
CHOICES = [(path.parent.name, path.stem) for path in FILES if path.parent not in (CONF, CONF / "presets")]
ROWS = [(group, name) for group, name, _ in presets(CONF / "presets")]


@pytest.mark.parametrize(("group", "name"), [*CHOICES, *ROWS])
def test_every_choice_is_reached_and_validates(group: str, name: str, tmp_path: Path, store: Path) -> None:
    overrides = needed(tmp_path, store, selection(group, name))
    assert chosen(*overrides)[group] == name
    validate(load(compose(*overrides)))


def test_a_row_for_one_kind_of_data_wins_over_what_both_share(tmp_path: Path) -> None:
    (tmp_path / "moons.yaml").write_text(
        "small: {both: {train: {batch: 1, passes: 2}}, synthetic: {train: {batch: 3}}, model: {mlp-prepared: {hidden: [4]}}}"
    )
    assert list(presets(tmp_path)) == [
        ("preset", "moons-prepared-small", {"train": {"batch": 1, "passes": 2}}),
        ("size", "mlp-prepared-small", {"hidden": [4]}),
        ("preset", "moons-synthetic-small", {"train": {"batch": 3, "passes": 2}}),
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_file_opens_with_a_comment(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_validates_at_smoke(algorithm: str, tmp_path: Path, store: Path) -> None:
    config = load(compose(*needed(tmp_path, store, ["scale=smoke", f"algorithm={algorithm}"])))
    validate(config)
    assert config.algorithm.name == algorithm
    assert config.scale == "smoke"


def test_presets_exist_for_every_task_data_and_scale() -> None:
    names = {name for group, name in ROWS if group == "preset"}
    parts = [[path.stem for path in (CONF / group).glob("*.yaml")] for group in ("task", "data", "scale")]
    assert names == {f"{task}-{data}-{scale}" for task in parts[0] for data in parts[1] for scale in parts[2]}


def test_the_command_line_wins_over_presets() -> None:
    config = load(compose("scale=smoke", "train.batch=7", "model.hidden=[3]", "optim.lr=0.5", "num_groups=3"))
    assert (config.train.batch, config.model.hidden, config.optim.lr, config.num_groups) == (7, [3], 0.5, 3)  # type: ignore[attr-defined]


def test_a_tuned_learning_rate_belongs_to_its_optimiser() -> None:
    sgd = yaml.safe_load((CONF / "optim" / "sgd.yaml").read_text())
    assert load(compose("optim=sgd")).optim.lr == sgd["lr"]
    assert load(compose("optim=adagrad")).optim.lr != sgd["lr"]


def test_constant_and_fixed_teachers_are_heard_at_once_and_peers_after_the_burn_in(tmp_path: Path, store: Path) -> None:
    burn_in = {
        name: load(compose(*needed(tmp_path, store, ["scale=smoke", f"algorithm={name}"]))).algorithm.burn_in
        for name in ("label_smoothing", "distill", "codistill")
    }
    assert burn_in["label_smoothing"] == burn_in["distill"] == 0
    assert burn_in["codistill"] > 0


def test_paper_scale_is_the_papers() -> None:
    config = load(compose("scale=paper"))
    assert config.model.hidden == [2560, 1024, 256]  # type: ignore[attr-defined]
    assert (config.optim.name, config.optim.lr, config.train.passes) == ("adagrad", 0.001, 1.0)


@pytest.mark.parametrize("found", [*schema_keys()], ids=lambda found: found.name)
def test_every_key_says_what_it_means_within_two_lines_of_help(found: SchemaKey) -> None:
    assert 3 <= len(found.key.meaning) <= 90
    if found.kind in (int, float, int | None, float | None, list[int], list[float]):
        assert found.key.bounds is not None or found.key.choices


def test_round_trip(smoke: Config, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(smoke)))
    assert load(path) == smoke == load(to_dict(smoke))
    assert type(load(path).model) is type(smoke.model)


def test_numbers_keep_their_type() -> None:
    content = to_dict(load(compose()))
    content["optim"]["eps"] = "1e-9"  # as PyYAML reads 1e-9
    content["optim"]["lr"] = 1
    config = load(content)
    assert (config.optim.eps, config.optim.lr) == (1e-9, 1.0)
    assert isinstance(config.optim.lr, float)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.batch", "many", "train.batch=many: expected a whole number"),
        ("train.batch", 2.5, "expected a whole number"),
        ("train.batch", True, "expected a whole number"),
        ("train.batch", None, "expected a whole number"),
        ("optim.lr", "fast", "optim.lr=fast: expected a number"),
        ("optim.nesterov", 1, "expected true or false"),
        ("model.hidden", 3, "expected a list"),
        ("model.hidden", ["a"], "expected a whole number"),
        ("train.btach", 3, "train.batch"),
        ("trian", 3, "no key trian"),
        ("model.name", "mpl", "Did you mean mlp?"),
        ("optim", 3, "expected keys and values below optim"),
        ("scale", "???", "No value for scale"),
    ],
)
def test_what_load_refuses(smoke: Config, key: str, value: object, said: str) -> None:
    content = to_dict(smoke)
    node = content
    *path, last = key.split(".")
    for name in path:
        node = node[name]
    node[last] = value
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        load(content)


def test_optional_values_may_be_null(smoke: Config) -> None:
    content = to_dict(smoke)
    content["train"]["max_examples"] = None
    assert load(content).train.max_examples is None


def changed(config: Config, key: str, value: object) -> Config:
    content = to_dict(config)
    node = content
    *path, last = key.split(".")
    for name in path:
        node = node[name]
    node[last] = value
    return load(content)


PARTS = {"algorithm.strategy": "delayed", "algorithm.teacher": "constant", "exchange.name": "store"}
OTHER = {int: 7, float: 0.123, bool: None, str: "other", list: [7], type(None): 7}


@pytest.mark.parametrize("key", known_keys())
def test_the_hash_follows_exactly_the_keys_that_decide(key: str) -> None:
    tasks = (
        ["task=criteo"],
        ["task=criteo", "model=dcn_v2"],
        ["task=lm"],
        ["task=lm", "model=transformer"],
        ["task=imagenet"],
    )
    smoke = next(c for c in (load(compose("scale=smoke", *t)) for t in tasks) if key in dict(flatten(to_dict(c))))
    value = dict(flatten(to_dict(smoke)))[key]
    other: Any = not value if isinstance(value, bool) else OTHER[type(value)]
    if key in (
        "algorithm.events",
        "run.dir",
        "run.id",
        "data.path",
        "exchange.url",
        "train.init_from",
        "train.checkpoint_copy",
    ):
        other = "elsewhere"
    if key in ("algorithm.teachers", "run.sinks"):
        other = ["elsewhere"]
    if key == "groups":
        other = [{"optim.lr": 0.5}, {}]
    if key in PARTS:
        other = PARTS[key]
    if key in ("model.name", "task.name"):
        return  # another model, another task has other keys
    new = changed(smoke, key, other)
    free = any(key == name or key.startswith(f"{name}.") for name in FREE_KEYS)
    assert (config_hash(new) == config_hash(smoke)) is free
    assert [line.partition(":")[0] for line in differences(smoke, new)] == ([] if free else [key])


def test_new_keys_leave_the_hash_of_finished_runs_alone(smoke: Config) -> None:
    assert config_hash(smoke) == FIRST_HASH
    assert config_hash(changed(smoke, "train.average", "ema")) != config_hash(smoke)


def test_the_hash_names_what_lies_at_places(tmp_path: Path, store: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "store.json").write_text((store / "store.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "store.json").write_text(json.dumps({"format": "x", "task": "criteo", "fingerprint": "0" * 64}))
    hashes = []
    for folder in (store, moved, other):
        config = prepare_config(compose("data=prepared", "scale=smoke", f"data.path='{folder}'"))
        hashes.append(config_hash(config, content=content_of(config)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_hash_of_distillation_follows_the_teachers_not_their_places(tmp_path: Path) -> None:
    hashes = []
    for name, digest in (("a", "1" * 64), ("b", "1" * 64), ("c", "2" * 64)):
        teacher = finished_run(tmp_path / name, digest=digest)
        config = prepare_config(compose("algorithm=distill", "scale=smoke", f"algorithm.teachers=['{teacher}']"))
        hashes.append(config_hash(config, content=content_of(config)))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algorithm=codistill", "num_groups=1"], "num_groups=2"),
        (["algorithm=distill"], r"algorithm.teachers=\[runs/A,runs/B\]"),
        (["algorithm=distill", "algorithm.teachers=[nowhere]"], "no such run folder"),
        (["algorithm.teachers=[x]"], "algorithm=distill"),
        (["algorithm.teacher=peer"], "Did you mean peers"),
        (["algorithm.strategy=alreduce"], "Did you mean allreduce"),
        (["algorithm.label_weight=0"], "nothing to learn"),
        (["algorithm=codistill", "algorithm.label_weight=0"], "algorithm.burn_in=0"),
        (["data=prepared"], "needs data.path"),
        (["data=prepared", "data.path=nowhere"], "no such folder"),
        (["data=prepared", "data.path=conf"], "no such folder|not a prepared folder"),
        (["data.path=nowhere"], "add data=prepared"),
        (["data.parts=2"], "data.partition=disjoint"),
        (["optim.lr=0"], "optim.lr=0.0: expected a number more than 0"),
        (["optim.lr=nan"], "optim.lr=nan"),
        (["optim.lr=inf"], "optim.lr=inf"),
        (["optim.schedule=cosin"], "Did you mean cosine"),
        (["optim.schedule=steps"], "milestones"),
        (["optim.milestones=[5]"], "milestones"),
        (["optim.schedule=steps", "optim.milestones=[5,3]"], "rising"),
        (["optim.momentum=0.9"], "optim=sgd"),
        (["optim=sgd", "optim.momentum=1"], "below 1"),
        (["optim=sgd", "optim.nesterov=true"], "optim.momentum=0.9"),
        (["train.batch=0"], "train.batch=0"),
        (["workers=-1"], "workers=-1"),
        (["model.hidden=[8,0]"], "model.hidden"),
        (["launch.device=gpu"], "launch.device=gpu"),
        (["task.synthetic.missing=2"], "from 0 to 1"),
    ],
)
def test_what_validate_refuses(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(load(compose(*overrides)))


def test_unfinished_and_repeated_teachers_are_refused(tmp_path: Path) -> None:
    half = finished_run(tmp_path / "half", state="interrupted")
    with pytest.raises(UserError, match="not finished"):
        validate(load(compose("algorithm=distill", f"algorithm.teachers=['{half}']")))
    whole = finished_run(tmp_path / "whole")
    with pytest.raises(UserError, match="named twice"):
        validate(load(compose("algorithm=distill", f"algorithm.teachers=['{whole}','{whole}/../whole']")))


def test_a_store_of_another_task_is_refused(store: Path) -> None:
    (store / "store.json").write_text(json.dumps({"format": "x", "task": "imagenet", "fingerprint": "f"}))
    with pytest.raises(UserError, match="prepared for task=imagenet"):
        validate(load(compose("data=prepared", f"data.path='{store}'")))


def test_a_teacher_that_is_never_heard_is_remarked() -> None:
    late = load(compose("scale=smoke", "algorithm=codistill", "train.max_examples=200"))
    assert any("never heard" in text for text in remarks(late))
    assert remarks(load(compose("scale=smoke", "algorithm=codistill"))) == []
    assert remarks(load(compose("scale=smoke", "train.max_examples=200"))) == []
