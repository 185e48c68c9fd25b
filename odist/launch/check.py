"""Checks of a configuration before a run folder is made: ranges and choices of keys, and rules between several keys.

A part checks the rules of its own options (`Options.check`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odist import registry
from odist.config.groups import of_group
from odist.config.key import Key, key_of
from odist.config.options import chosen_parts, options_of, unread_options
from odist.config.read import described
from odist.config.schema import Config, LSTMConfig, TransformerConfig
from odist.config.suggest import choose
from odist.data.store import read_record
from odist.engine.devices import require
from odist.errors import UserError
from odist.run import sinks
from odist.run.folder import Run
from odist.stores import check_url
from odist.teachers import ModelOptions, PeersOptions, PopulationOptions, is_file, peers_options

PREPARED_BY = {"lm": "text"}  # the verb's name where it is not the task's
MODELS_OF_TASKS = {
    "criteo": ("mlp", "deepfm", "dcn_v2"),
    "lm": ("lstm", "transformer"),
    "imagenet": ("resnet", "wrn"),
}


def validate(config: Config) -> None:
    """Refuse a configuration that cannot work. Raises UserError with key, value and what to type instead.

    Reads files only of `data.path` and of the finished runs that it names.
    """
    for name, value, key in described(config):
        _check_value(name, value, key)
    _check_model(config)
    _check_optim(config)
    _check_groups(config)
    _check_algorithm(config)
    _check_finished_runs(config)
    _check_train(config)
    _check_launch(config)
    _check_data(config)
    sinks.check(config.run.sinks)


def _check_value(name: str, value: Any, key: Key) -> None:
    choices = list(registry.names(key.parts)) if key.parts is not None else [str(choice) for choice in key.choices]
    if choices and str(value) not in choices:
        raise UserError(f"{name}={value}: {choose(str(value), choices)}")
    for number in value if isinstance(value, list) else [value]:
        if key.bounds is not None and number is not None and number not in key.bounds:
            raise UserError(f"{name}={value}: expected a number {key.bounds}.")


def _check_groups(config: Config) -> None:
    if config.groups and len(config.groups) != config.num_groups:
        raise UserError(
            f"groups: {len(config.groups)} entries with num_groups={config.num_groups}. Give one for every group, {{}} for one "
            "that has nothing of its own: 'groups=[{model.dropout:0.1},{}]'."
        )
    for group in range(len(config.groups)):
        own = of_group(config, group)
        try:
            for name, value, key in described(own):
                _check_value(name, value, key)
            _check_model(own)
            _check_optim(own)
        except UserError as error:
            raise UserError(f"groups: group {group}: {error}") from None


def _check_model(config: Config) -> None:
    task, model = config.task.name, config.model
    if model.name in registry.others("models"):
        return  # its package knows which tasks it fits
    if model.name not in MODELS_OF_TASKS.get(task, (model.name,)):
        raise UserError(
            f"model={model.name} cannot learn task={task}. Choose model={' or model='.join(MODELS_OF_TASKS[task])}."
        )
    teacher = options_of(config, "teachers")
    if isinstance(model, LSTMConfig) and isinstance(teacher, ModelOptions) and teacher.lookahead > 1:
        raise UserError(
            f"exchange.lookahead={teacher.lookahead}: an LSTM carries its state from batch to batch, so its teacher "
            "cannot predict several of them in one pass. Type exchange.lookahead=1."
        )
    if isinstance(model, LSTMConfig) and not model.hidden:
        raise UserError("model.hidden=[]: an LSTM needs at least one layer: model.hidden=[256].")
    if isinstance(model, TransformerConfig) and (model.width % model.heads or model.width // model.heads % 2):
        width = 2 * model.heads * max(1, round(model.width / (2 * model.heads)))
        raise UserError(
            f"model.width={model.width} with model.heads={model.heads}: each head needs the same even width. "
            f"Try model.width={width}."
        )


def _check_optim(config: Config) -> None:
    optim = config.optim
    for key, share in (("milestones", "milestone_shares"), ("warmup", "warmup_share")):
        if getattr(optim, key) and getattr(optim, share):
            raise UserError(
                f"optim.{key}={getattr(optim, key)} with optim.{share}={getattr(optim, share)}: give one of the two, the "
                "first in examples, the second in shares of the run."
            )
    milestones = optim.milestones or optim.milestone_shares
    if optim.schedule == "steps" and not milestones:
        raise UserError(
            "optim.schedule=steps needs milestones: in examples, as in optim.milestones=[100000,200000], or in "
            "shares of the run, as in optim.milestone_shares=[0.3,0.6]."
        )
    if optim.schedule != "steps" and milestones:
        key = "milestones" if optim.milestones else "milestone_shares"
        raise UserError(
            f"optim.schedule={optim.schedule} with optim.{key}={milestones}: only optim.schedule=steps has "
            f"milestones. Add optim.{key}=[]."
        )
    if milestones != sorted(set(milestones)):
        raise UserError(f"optim.milestones={milestones}: expected rising numbers.")
    if optim.weight_decays and len(optim.weight_decays) != len(milestones):
        raise UserError(
            f"optim.weight_decays={optim.weight_decays}: expected one for each of the {len(milestones)} "
            "milestones of optim.schedule=steps."
        )
    if optim.nesterov and optim.momentum == 0:
        raise UserError("optim.nesterov=true needs momentum: add optim.momentum=0.9.")
    for key in ("momentum", "nesterov"):
        if getattr(optim, key) and optim.name not in ("sgd", "lars"):
            raise UserError(
                f"optim.{key}={getattr(optim, key)}: only optim=sgd and optim=lars have it, not optim={optim.name}."
            )


def _check_launch(config: Config) -> None:
    launch = config.launch
    _check_group(config)
    require(launch.device, asked=f"launch.device={launch.device}", instead="launch.device=cpu")
    if launch.processes == 1:
        return
    if launch.name == "inline":
        raise UserError(f"launch.processes={launch.processes}: only launch=local starts processes.")
    env = launch.name == "env"
    given = f"{launch.processes} processes for each group" if env else f"launch.processes={launch.processes}"
    if not registry.find("strategies", config.algorithm.strategy).spreads_workers:
        raise UserError(
            f"{given}: algorithm.strategy={config.algorithm.strategy} runs in one process "
            f"per group. {'Start one' if env else 'Leave launch.processes out'}, or type algorithm.strategy=allreduce."
        )
    each, rest = divmod(config.workers, launch.processes)
    exact = getattr(options_of(config, "strategies"), "reduce", "exact") == "exact"
    if rest or (exact and each & (each - 1)):
        carried = {number: config.workers / number for number in range(1, config.workers + 1)}
        shares = {number: int(share) for number, share in carried.items() if share.is_integer()}
        fits = [number for number, share in shares.items() if not exact or share.bit_count() == 1]
        takes = (
            "1, 2, 4, 8 ... of them (or with algorithm.reduce=fast any number)" if exact else "the same number of them"
        )
        raise UserError(
            f"{given} cannot carry workers={config.workers}: each process takes {takes}. "
            + (
                f"Start {' or '.join(str(number * len(config.trained_groups)) for number in fits)} in all."
                if env
                else f"Choose launch.processes={' or launch.processes='.join(map(str, fits))}."
            )
        )


def _check_group(config: Config) -> None:
    only = config.launch.group
    if only is None:
        return
    if only >= config.num_groups:
        raise UserError(
            f"launch.group={only} with num_groups={config.num_groups}: groups are counted from 0, so the last is "
            f"launch.group={config.num_groups - 1}."
        )
    if peers_options(config) is None:
        return
    absent = [
        example
        for example, value in (
            ("exchange.url=s3://bucket/folder", getattr(options_of(config, "exchange"), "url", "")),
            ("run.id=NAME", config.run.id),
        )
        if value is None
    ]
    if absent:
        raise UserError(
            f"launch.group={only}: this job and those of the other groups meet in a store that all of them see, under one "
            f"name. Add {' and '.join(absent)}, the same in all jobs."
        )


def _check_train(config: Config) -> None:
    check_url(config.train.checkpoint_copy, key="train.checkpoint_copy")
    if config.train.average == "groups" and not isinstance(options_of(config, "teachers"), PopulationOptions):
        raise UserError(
            f"train.average=groups: the groups of algorithm={config.algorithm.name} do not average their weights. Type "
            "algorithm=papa, or train.average=ema."
        )
    if config.train.keep_evaluations and config.train.evaluate_rows is not None:
        raise UserError(
            f"train.keep_evaluations=true with train.evaluate_rows={config.train.evaluate_rows}: the curve of an "
            "ensemble needs all rows at every evaluation. Add train.evaluate_rows=null."
        )


def _check_algorithm(config: Config) -> None:
    algorithm, teacher = config.algorithm, options_of(config, "teachers")
    kinds = ["strategies", "teachers", *(["exchange"] if isinstance(teacher, PeersOptions) else [])]
    for kind in kinds:
        check = getattr(options_of(config, kind), "check", None)
        if check is not None:
            check(config)
    for option in unread_options(chosen_parts(config)):
        value, only = getattr(getattr(config, option.node), option.name), key_of(option.field).only_with
        if only is not None and value != option.default:
            raise UserError(
                f"{option.dotted}={value}: nothing reads it with algorithm={algorithm.name} (teacher {algorithm.teacher}, "
                f"strategy {algorithm.strategy}). Type {only}, or leave it out."
            )
    if algorithm.label_weight == 0 and getattr(teacher, "distill_weight", 0) == 0:
        raise UserError("algorithm.label_weight=0 leaves nothing to learn: give the labels or a teacher some weight.")
    if algorithm.label_weight == 0 and getattr(teacher, "burn_in", 0) > 0:
        raise UserError(
            f"algorithm.label_weight=0 with algorithm.burn_in={teacher.burn_in} leaves nothing to learn before the "
            "burn-in is over: add algorithm.burn_in=0."
        )


def _check_finished_runs(config: Config) -> None:
    """Refuse runs to build on that are not finished or learn something else, and files that are not there."""
    for key, path in named_files(config):
        if not Path(path).is_file():
            raise UserError(f"{key}: {path}: no such file.")
    for key, path in named_runs(config):
        task = Run.open_finished(path, key=key).config.get("task", {}).get("name")
        if task != config.task.name:
            raise UserError(
                f"{key}: {path} is a run of task={task}, this one of task={config.task.name}. Name a run of the same task."
            )


def named_runs(config: Config) -> list[tuple[str, str]]:
    """Key and folder of every finished run that the configuration builds on."""
    return [(name, path) for name, path in _named(config) if not is_file(path)]


def named_files(config: Config) -> list[tuple[str, str]]:
    """Key and path of every file of weights or predictions that teaches."""
    return [(name, path) for name, path in _named(config) if is_file(path)]


def _named(config: Config) -> list[tuple[str, str]]:
    named = [(name, value) for name, value, key in described(config) if key.place == "run" and value]
    return [(name, path) for name, value in named for path in (value if isinstance(value, list) else [value])]


def _check_data(config: Config) -> None:
    data = config.data
    if data.parts is not None and (data.partition != "disjoint" or data.parts < config.num_groups):
        raise UserError(
            f"data.parts={data.parts} with data.partition={data.partition} and num_groups={config.num_groups}: "
            "parts belong to data.partition=disjoint, at least one for every group."
        )
    if data.name != "prepared":
        if data.path is not None:
            raise UserError(f"data.path={data.path}: only data=prepared reads a folder; add data=prepared.")
        return
    if data.path is None:
        command = f"odist prepare {PREPARED_BY.get(config.task.name, config.task.name)}"
        raise UserError(
            f"data=prepared needs data.path=FOLDER, a folder made by `{command} --input FILE --output FOLDER`."
        )
    store = read_store(data.path)
    if store.get("task") != config.task.name:
        raise UserError(
            f"data.path={data.path} was prepared for task={store.get('task')}, not for task={config.task.name}."
        )
    if store.get("report", {}).get("click_rate", 0.0) is None:
        raise UserError(
            f"data.path={data.path}: its rows have no labels, so there is nothing to learn from them. Prepare rows "
            f"with labels to train on; what a run predicts for these: odist eval RUN --data {data.path} "
            "--output FILE.csv (they need --like STORE of the run)."
        )


def read_store(path: str) -> dict[str, Any]:
    """The `store.json` of a prepared folder. Raises UserError if `path` is not one."""
    record = read_record(Path(path))
    if record is None:
        what = "not a prepared folder (it has no store.json)" if Path(path).is_dir() else "no such folder"
        raise UserError(f"data.path={path}: {what}. `odist prepare` makes one.")
    return record
