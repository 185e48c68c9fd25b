"""Which values of a configuration make sense, checked before a run folder is made.

Types and names of keys are the schema's (odist.config); whether a part supports what it is asked for in
combination with another is said by that part when the run starts.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from odist import registry, sinks
from odist.config import (
    JPEG_SIZE,
    Config,
    CriteoConfig,
    ImageNetConfig,
    LanguageConfig,
    LSTMConfig,
    ResNetConfig,
    TransformerConfig,
    flatten,
    to_dict,
)
from odist.errors import UserError
from odist.run import Run
from odist.suggest import choose

CHOICES: dict[str, tuple[str | int, ...]] = {
    "data.name": ("synthetic", "prepared"),
    "data.partition": ("same", "identical", "disjoint"),
    "data.holdout": ("validation", "tuning"),
    "task.crop": ("auto", "resized", "shifted", "none"),
    "task.decoder": ("auto", "fast", "pillow"),
    "model.depth": (8, 18, 20, 50),
    "optim.name": ("adagrad", "sgd", "adam", "adamw", "lars"),
    "optim.schedule": ("constant", "cosine", "steps"),
    "algorithm.distill_loss": ("cross_entropy", "kl", "squared_logits"),
    "algorithm.average": ("probabilities", "logits"),
    "algorithm.distribution": ("uniform", "unigram"),
    "exchange.timing": ("lockstep", "freshest"),
    "launch.name": ("inline", "local"),
    "launch.device": ("cpu", "cuda"),
}
REGISTERED = {
    "task.name": "tasks",
    "model.name": "models",
    "algorithm.strategy": "strategies",
    "algorithm.teacher": "teachers",
    "exchange.name": "exchange",
}

# Half-open or closed ranges: lowest, highest, and whether the ends belong to the range.
POSITIVE = (0, math.inf, False)
NOT_NEGATIVE = (0, math.inf, True)
SHARE = (0, 1, True)
RANGES: dict[str, tuple[float, float, bool]] = {
    "num_groups": POSITIVE,
    "workers": POSITIVE,
    "seed": NOT_NEGATIVE,
    "data.seed": NOT_NEGATIVE,
    "data.max_rows": POSITIVE,
    "data.parts": POSITIVE,
    "task.synthetic.rows": POSITIVE,
    "task.synthetic.validation_rows": POSITIVE,
    "task.synthetic.vocabulary": POSITIVE,
    "task.synthetic.zipf": NOT_NEGATIVE,
    "task.synthetic.missing": SHARE,
    "task.synthetic.interactions": NOT_NEGATIVE,
    "task.synthetic.signal": NOT_NEGATIVE,
    "task.synthetic.topics": POSITIVE,
    "task.synthetic.names": POSITIVE,
    "task.synthetic.document_length": (4, math.inf, True),
    "task.synthetic.followers": POSITIVE,
    "task.synthetic.phrase": SHARE,
    "task.synthetic.recall": SHARE,
    "task.synthetic.contrast": SHARE,
    "task.synthetic.noise": NOT_NEGATIVE,
    "task.unroll": POSITIVE,
    "task.size": (8, math.inf, True),
    "task.threads": POSITIVE,
    "model.embedding_dim": POSITIVE,
    "model.hidden": POSITIVE,
    "model.layers": POSITIVE,
    "model.width": POSITIVE,
    "model.heads": POSITIVE,
    "optim.lr": POSITIVE,
    "optim.lr_per": POSITIVE,
    "optim.trust": POSITIVE,
    "optim.eps": POSITIVE,
    "optim.initial_accumulator": NOT_NEGATIVE,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.weight_decays": NOT_NEGATIVE,
    "optim.clip_norm": POSITIVE,
    "optim.warmup": NOT_NEGATIVE,
    "optim.warmup_share": SHARE,
    "optim.warmup_from": NOT_NEGATIVE,
    "optim.milestones": POSITIVE,
    "optim.milestone_shares": SHARE,
    "optim.decay": POSITIVE,
    "optim.final_fraction": SHARE,
    "algorithm.label_weight": NOT_NEGATIVE,
    "algorithm.distill_weight": NOT_NEGATIVE,
    "algorithm.burn_in": NOT_NEGATIVE,
    "algorithm.delay": NOT_NEGATIVE,
    "algorithm.average_every": POSITIVE,
    "exchange.interval": POSITIVE,
    "exchange.lag": NOT_NEGATIVE,
    "exchange.timeout": POSITIVE,
    "exchange.poll": POSITIVE,
    "exchange.keep": POSITIVE,
    "exchange.lookahead": POSITIVE,
    "launch.threads": POSITIVE,
    "launch.processes": POSITIVE,
    "launch.restarts": NOT_NEGATIVE,
    "train.batch": POSITIVE,
    "train.passes": POSITIVE,
    "train.max_examples": POSITIVE,
    "train.evaluate_every": NOT_NEGATIVE,
    "train.evaluate_rows": POSITIVE,
    "train.evaluate_batch": POSITIVE,
    "train.checkpoint_every": NOT_NEGATIVE,
    "train.keep_checkpoints": POSITIVE,
    "train.log_every": NOT_NEGATIVE,
    "train.prefetch": NOT_NEGATIVE,
}
PREPARED_BY = {"lm": "commoncrawl"}  # the verb's name where it is not the task's
MODELS_OF_TASKS = {"criteo": ("mlp",), "lm": ("lstm", "transformer"), "imagenet": ("resnet",)}
SMALL_DEPTHS, SMALL_SIZE = (8, 20), 32  # residual networks that do not pool behind the stem; side of their images
BELOW_ONE = ("model.dropout", "optim.momentum", "optim.beta1", "optim.beta2")  # 0 <= value < 1


def validate(config: Config) -> None:
    """Refuse a configuration that cannot be meant; UserError names key, value and what to type instead.

    Looks at files only for `data.path` and `algorithm.teachers`.
    """
    values = dict(flatten(to_dict(config)))
    for key, choices in CHOICES.items():
        _in(values, key, choices)
    for key, kind in REGISTERED.items():
        _in(values, key, tuple(registry.names(kind)))
    for key, bounds in RANGES.items():
        _within(values, key, bounds)
    for key in BELOW_ONE:
        if key in values and not 0 <= values[key] < 1:
            raise UserError(f"{key}={values[key]}: expected a number from 0 to below 1.")
    _check_model(config)
    _check_optim(config)
    _check_train(config)
    _check_algorithm(config)
    _check_launch(config)
    _check_data(config)
    sinks.check(config.run.sinks)


def _in(values: dict[str, Any], key: str, choices: tuple[str | int, ...]) -> None:
    if key in values and values[key] not in choices:
        raise UserError(f"{key}={values[key]}: {choose(str(values[key]), [str(choice) for choice in choices])}")


def _within(values: dict[str, Any], key: str, bounds: tuple[float, float, bool]) -> None:
    low, high, closed = bounds
    value = values.get(key)
    for number in value if isinstance(value, list) else [value]:
        if number is None:
            continue
        inside = low <= number <= high if closed else low < number < high
        if not inside or not math.isfinite(number):
            above = f"{low} or more" if closed else f"more than {low}"
            expected = above if high == math.inf else f"from {low} to {high}"
            raise UserError(f"{key}={value}: expected a number {expected}.")


def _check_model(config: Config) -> None:
    task, model = config.task.name, config.model
    if model.name not in MODELS_OF_TASKS.get(task, (model.name,)):
        raise UserError(
            f"model={model.name} cannot learn task={task}. Choose model={' or model='.join(MODELS_OF_TASKS[task])}."
        )
    if isinstance(model, LSTMConfig) and config.exchange.lookahead > 1:
        raise UserError(f"exchange.lookahead={config.exchange.lookahead}: an LSTM carries its state from batch to batch, so "
                        "its teacher cannot predict several of them in one pass. Type exchange.lookahead=1.")  # fmt: skip
    if isinstance(model, LSTMConfig) and not model.hidden:
        raise UserError("model.hidden=[]: an LSTM needs at least one layer: model.hidden=[256].")
    if isinstance(model, TransformerConfig) and (model.width % model.heads or model.width // model.heads % 2):
        raise UserError(f"model.width={model.width} with model.heads={model.heads}: each head needs the same even width. "
                        f"Try model.width={2 * model.heads * max(1, round(model.width / (2 * model.heads)))}.")  # fmt: skip


def _check_optim(config: Config) -> None:
    optim = config.optim
    for key, share in (("milestones", "milestone_shares"), ("warmup", "warmup_share")):
        if getattr(optim, key) and getattr(optim, share):
            raise UserError(f"optim.{key}={getattr(optim, key)} with optim.{share}={getattr(optim, share)}: give one of "
                            "the two, the first in examples, the second in shares of the run.")  # fmt: skip
    milestones = optim.milestones or optim.milestone_shares
    if optim.schedule == "steps" and not milestones:
        raise UserError("optim.schedule=steps needs milestones: in examples, as in optim.milestones=[100000,200000], or in "
                        "shares of the run, as in optim.milestone_shares=[0.3,0.6].")  # fmt: skip
    if optim.schedule != "steps" and milestones:
        key = "milestones" if optim.milestones else "milestone_shares"
        raise UserError(f"optim.schedule={optim.schedule} with optim.{key}={milestones}: only optim.schedule=steps has "
                        f"milestones. Add optim.{key}=[].")  # fmt: skip
    if milestones != sorted(set(milestones)):
        raise UserError(f"optim.milestones={milestones}: expected rising numbers.")
    if optim.weight_decays and len(optim.weight_decays) != len(milestones):
        raise UserError(f"optim.weight_decays={optim.weight_decays}: expected one for each of the {len(milestones)} "
                        "milestones of optim.schedule=steps.")  # fmt: skip
    if optim.nesterov and optim.momentum == 0:
        raise UserError("optim.nesterov=true needs momentum: add optim.momentum=0.9.")
    for key in ("momentum", "nesterov"):
        if getattr(optim, key) and optim.name not in ("sgd", "lars"):
            raise UserError(f"optim.{key}={getattr(optim, key)}: only optim=sgd and optim=lars have it, not "
                            f"optim={optim.name}.")  # fmt: skip


def _check_launch(config: Config) -> None:
    launch, exchange = config.launch, config.exchange
    if launch.name == "local" and exchange.name == "memory" and config.algorithm.teacher == "peers":
        raise UserError("exchange=memory reaches only groups of one process; with launch=local type exchange=store.")
    if launch.processes == 1:
        return
    if launch.name != "local":
        raise UserError(f"launch.processes={launch.processes}: only launch=local starts processes.")
    if config.algorithm.strategy != "allreduce":
        raise UserError(f"launch.processes={launch.processes}: algorithm.strategy={config.algorithm.strategy} runs in "
                        "one process per group; only allreduce spreads its workers.")  # fmt: skip
    each, rest = divmod(config.workers, launch.processes)
    if rest or each & (each - 1):
        fits = [p for p in range(1, config.workers + 1)
                if config.workers % p == 0 and (config.workers // p) & (config.workers // p - 1) == 0]  # fmt: skip
        raise UserError(f"launch.processes={launch.processes} cannot carry workers={config.workers}: each process takes "
                        f"1, 2, 4, 8 ... of them. Choose launch.processes from {', '.join(map(str, fits))}.")  # fmt: skip


def _check_train(config: Config) -> None:
    if config.train.keep_evaluations and config.train.evaluate_rows is not None:
        raise UserError(f"train.keep_evaluations=true with train.evaluate_rows={config.train.evaluate_rows}: the curve of an "
                        "ensemble needs all rows at every evaluation. Add train.evaluate_rows=null.")  # fmt: skip


def _check_algorithm(config: Config) -> None:
    algorithm = config.algorithm
    if algorithm.teacher == "peers" and config.num_groups < 2:
        raise UserError(f"num_groups={config.num_groups}: algorithm={algorithm.name} needs peers to learn from, "
                        "so at least 2 groups: num_groups=2.")  # fmt: skip
    if algorithm.teacher == "fixed":
        _check_teachers(algorithm.teachers)
    elif algorithm.teachers:
        raise UserError(f"algorithm.teachers={algorithm.teachers}: only algorithm=distill listens to finished runs "
                        f"(algorithm.teacher=fixed, not {algorithm.teacher}).")  # fmt: skip
    if algorithm.label_weight == 0 and (algorithm.teacher == "none" or algorithm.distill_weight == 0):
        raise UserError("algorithm.label_weight=0 leaves nothing to learn: give the labels or a teacher some weight.")
    if algorithm.label_weight == 0 and algorithm.burn_in > 0:
        raise UserError(f"algorithm.label_weight=0 with algorithm.burn_in={algorithm.burn_in} leaves nothing to learn "
                        "before the teacher is heard: add algorithm.burn_in=0.")  # fmt: skip


def _check_teachers(teachers: list[str]) -> None:
    if not teachers:
        raise UserError("algorithm.teachers=[]: name the finished runs that teach: algorithm.teachers=[runs/A,runs/B].")
    if len({str(Path(teacher).resolve()) for teacher in teachers}) < len(teachers):
        raise UserError(f"algorithm.teachers={teachers}: a run is named twice.")
    for teacher in teachers:
        run = Run.open(teacher)
        if not run.finished:
            raise UserError(f"algorithm.teachers: {teacher} is not finished (state {run.status.get('state')}). "
                            "Continue it first by its own `odist train` command.")  # fmt: skip


def _check_data(config: Config) -> None:
    data = config.data
    if data.parts is not None and (data.partition != "disjoint" or data.parts < config.num_groups):
        raise UserError(f"data.parts={data.parts} with data.partition={data.partition} and num_groups={config.num_groups}: "
                        "parts belong to data.partition=disjoint, at least one for every group.")  # fmt: skip
    if data.name != "prepared":
        if data.path is not None:
            raise UserError(f"data.path={data.path}: only data=prepared reads a folder; add data=prepared.")
        return
    if data.path is None:
        raise UserError("data=prepared needs data.path=FOLDER, a folder made by "
                        f"`odist prepare {PREPARED_BY.get(config.task.name, config.task.name)} --input FILE --output FOLDER`.")  # fmt: skip
    task = read_store(data.path).get("task")
    if task != config.task.name:
        raise UserError(f"data.path={data.path} was prepared for task={task}, not for task={config.task.name}.")


def read_store(path: str) -> dict[str, Any]:
    """The `store.json` of a prepared folder; UserError if `path` is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"data.path={path}: no such folder. `odist prepare` makes one.")
    try:
        return dict(json.loads((folder / "store.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"data.path={path}: not a prepared folder (it has no store.json). "
                        "`odist prepare` makes one.") from None  # fmt: skip
    except ValueError:
        raise UserError(f"data.path={path}: its store.json cannot be read. Prepare the folder again.") from None


def remarks(config: Config) -> list[str]:
    """What is allowed but probably not meant, as sentences."""
    return [*_unheard(config), *_too_small(config)]


def _unheard(config: Config) -> list[str]:
    examples = [config.train.max_examples] if config.train.max_examples is not None else []
    if config.data.name == "synthetic" and isinstance(config.task, CriteoConfig | LanguageConfig | ImageNetConfig):
        examples.append(int(config.train.passes * config.task.synthetic.rows))
    elif config.data.path is not None and isinstance(config.task, ImageNetConfig):  # its passes are many
        images = read_store(config.data.path).get("splits", {}).get("train", {}).get("images")
        examples += [] if images is None else [int(config.train.passes * images)]
    if config.algorithm.teacher in ("peers", "fixed") and examples and config.algorithm.burn_in >= min(examples):
        return [
            f"the teacher is never heard: algorithm.burn_in={config.algorithm.burn_in} examples, "
            f"the run ends after {min(examples)}."
        ]
    return []


def _too_small(config: Config) -> list[str]:
    task, model, path = config.task, config.model, config.data.path
    if not isinstance(task, ImageNetConfig) or not isinstance(model, ResNetConfig) or path is None:
        return []
    size = task.size or read_store(path).get("decoded") or JPEG_SIZE
    if model.depth not in SMALL_DEPTHS or size <= 2 * SMALL_SIZE:
        return []
    return [f"model.depth={model.depth} is a network for images of {SMALL_SIZE} pixels a side; these have {size}. Meant was "
            "perhaps model.depth=18, model.depth=50, scale=paper, or a smaller task.size."]  # fmt: skip
