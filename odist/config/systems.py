"""Which runs are retrains of one system: the keys that decide what a run learns, and those in which runs differ.

A retrain differs in its seed alone. Where it was computed, how often it was looked at and keys that its algorithm does not
read make no other system. Reads configurations as they stand in a run's config.yaml.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from odist.config.identity import FREE_KEYS, flatten, to_dict
from odist.config.key import MISSING
from odist.config.options import CHOSEN_BY, added_options, extended, unread_options
from odist.config.schema import Config, ModelConfig, TaskConfig
from odist.config.variants import variant
from odist.errors import UserError

# Beside FREE_KEYS, in these retrains may differ: what makes them retrains, what computes (it decides no more than bits),
# and what is evaluated on the way.
RETRAIN_KEYS = ("seed", "launch", "train.evaluate_every", "train.evaluate_rows", "train.keep_evaluations")

# Key, the key that it hangs on, and the values of that one with which it is read by nothing; None: that one is itself read
# by nothing. What another package adds stands in no row, so its keys count.
UNREAD: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("exchange.name", "exchange.timing", ("lockstep", None)),  # equal bits in memory and through a store
    ("exchange.publish", "train.average", ("none",)),
    ("train.average_horizon", "train.average", ("none", "swa")),
    ("train.average_from", "train.average", ("none",)),
    ("task.synthetic", "data.name", ("prepared",)),
    ("data.parts", "data.partition", ("same", "identical")),
    *((f"optim.{key}", "optim.name", ("adagrad", "adam", "adamw")) for key in ("momentum", "nesterov", "trust")),
    ("optim.trust", "optim.name", ("sgd",)),
    *((f"optim.{key}", "optim.name", ("adagrad", "sgd", "lars")) for key in ("beta1", "beta2")),
    ("optim.eps", "optim.name", ("sgd", "lars")),
    ("optim.initial_accumulator", "optim.name", ("sgd", "lars", "adam", "adamw")),
    ("optim.final_fraction", "optim.schedule", ("constant", "steps")),
    *(
        (f"optim.{key}", "optim.schedule", ("constant", "cosine"))
        for key in ("milestones", "milestone_shares", "decay")
    ),
)


def system_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values that decide which system a run trains; retrains of one system have equal ones.

    config: of a run folder, nested; keys that an older version did not have take their defaults
    Left out: FREE_KEYS, RETRAIN_KEYS, options of parts that are not chosen, and what nothing reads by UNREAD, such as
    `exchange.name` under lock-step.
    """
    flat = _defaults(config) | dict(flatten(config))
    chosen = {kind: str(flat[key]) for kind, key in CHOSEN_BY.items() if key in flat}
    for option in unread_options(chosen):
        flat.pop(option.dotted, None)
    return {
        key: value
        for key, value in flat.items()
        if not any(_within(key, free) for free in (*FREE_KEYS, *RETRAIN_KEYS))
        and not any(_within(key, unread) and flat.get(other) in values for unread, other, values in UNREAD)
    }


def system_differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys that tell the systems of these configurations apart, each with the value of every configuration.

    A value is None where that system does not read the key. Keys that differ in nothing but that follow from others, and
    are left out where there are others.
    """
    systems = [system_of(config) for config in configs]
    keys = dict.fromkeys(key for system in systems for key in system)
    read = {key: [system[key] for system in systems if key in system] for key in keys}
    chosen = [key for key, values in read.items() if any(value != values[0] for value in values)]
    chosen = chosen or [key for key, values in read.items() if len(values) < len(systems)]
    return {key: [system.get(key) for system in systems] for key in chosen}


def _within(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The schema's defaults for the task, the model and the parts of `config`, without keys that have none."""
    kinds = {"task": TaskConfig, "model": ModelConfig}
    named = {node: variant(kind, str((config.get(node) or {}).get("name"))) for node, kind in kinds.items()}
    try:
        schema_type = extended(Config, added_options(config))
    except UserError:  # of a package that is not installed any more
        schema_type = Config
    schema = dataclasses.replace(schema_type(), **{node: kind() for node, kind in named.items() if kind is not None})
    return {key: value for key, value in flatten(to_dict(schema)) if value != MISSING}
