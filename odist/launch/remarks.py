"""What a configuration allows and its user probably does not mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odist.config.key import key_of
from odist.config.options import chosen_parts, options_of, unread_options
from odist.config.schema import (
    JPEG_SIZE,
    Config,
    CriteoConfig,
    ImageNetConfig,
    LMConfig,
    ResNetConfig,
    WideResNetConfig,
)
from odist.launch.check import named_runs, read_store
from odist.run.folder import Run
from odist.teachers import peers_options

SMALL_DEPTHS, SMALL_SIZE = (8, 20, 32), 32  # residual networks that do not pool behind the stem; side of their images


def remarks(config: Config) -> list[str]:
    """What is allowed but probably not meant, as sentences."""
    return [
        *_unheard(config),
        *_unused_store(config),
        *_too_small(config),
        *_first_weights(config),
        *_has_seen_the_rows(config),
    ]


def _first_weights(config: Config) -> list[str]:
    path = config.train.init_from
    if path is None:
        return []
    run = Run.open(path)
    num_groups = run.config.get("num_groups", 1)
    whose = "every group from its group 0"
    if num_groups == config.num_groups:
        whose = "group 0 from its group 0" if num_groups == 1 else "each group from its group of the same number"
    said = [f"the first weights are those of {path}, {whose}; optimizer state, schedule and steps start afresh."]
    data = run.config.get("data", {})
    there: Any = run.env.get("fitted_fingerprint")
    if data.get("name") == "prepared" and there is None and Path(data["path"]).is_dir():
        there = read_store(data["path"]).get("fitted_fingerprint")
    here = None if config.data.path is None else read_store(config.data.path).get("fitted_fingerprint")
    if there is not None and here is not None and there != here:
        said.append(
            f"{path} was trained on data prepared with different vocabularies, classes or normalisation, so its inputs and "
            f"classes may have another meaning. Prepare these with --like {data.get('path') or 'STORE'} for the same one."
        )
    return said


def _has_seen_the_rows(config: Config) -> list[str]:
    """Of runs to build on that learnt from the rows that this one evaluates, as far as that can be known."""
    if config.data.path is None or config.data.holdout != "tuning":
        return []
    said = []
    for _, path in named_runs(config):
        run = Run.open(path)
        same = run.env.get("data_fingerprint") == read_store(config.data.path).get("fingerprint")
        if same and run.config.get("data", {}).get("holdout") != "tuning":
            said.append(
                f"{path} has been trained on the rows that data.holdout=tuning evaluates, so the results will look better "
                "than they are. Use a run with data.holdout=tuning."
            )
    return said


def _unheard(config: Config) -> list[str]:
    examples = [config.train.max_examples] if config.train.max_examples is not None else []
    if config.data.name == "synthetic" and isinstance(config.task, CriteoConfig | LMConfig | ImageNetConfig):
        examples.append(int(config.train.passes * config.task.synthetic.rows))
    elif config.data.path is not None and isinstance(config.task, ImageNetConfig):  # its passes are many
        images = read_store(config.data.path).get("splits", {}).get("train", {}).get("images")
        examples += [] if images is None else [int(config.train.passes * images)]
    burn_in = getattr(options_of(config, "teachers"), "burn_in", 0)
    if burn_in and examples and burn_in >= min(examples):
        return [
            f"the teacher is never heard: algorithm.burn_in={burn_in} examples, the run ends after {min(examples)}."
        ]
    return []


def _unused_store(config: Config) -> list[str]:
    if peers_options(config) is None:
        return []
    return [
        f"{option.dotted}={place} is not used: exchange={config.exchange.name}. Add exchange={option.owner[1]}, or "
        "launch=local."
        for option in unread_options(chosen_parts(config))
        if option.owner[0] == "exchange" and key_of(option.field).place
        if (place := getattr(config.exchange, option.name)) is not None
    ]


def _too_small(config: Config) -> list[str]:
    task, model, path = config.task, config.model, config.data.path
    if not isinstance(task, ImageNetConfig) or not isinstance(model, ResNetConfig | WideResNetConfig) or path is None:
        return []
    size = task.size or read_store(path).get("decoded") or JPEG_SIZE
    small = model.depth in SMALL_DEPTHS or isinstance(model, WideResNetConfig)
    if not small or size <= 2 * SMALL_SIZE:
        return []
    chosen = "model=wrn" if isinstance(model, WideResNetConfig) else f"model.depth={model.depth}"
    return [
        f"{chosen} is a network for images of {SMALL_SIZE} pixels a side; these have {size}. Did you mean model=resnet "
        "with model.depth=18 or 50, scale=paper, or a smaller task.size?"
    ]
