"""How weights travel between groups: every exchange by name, with its meaning and its options.

Options stand below `exchange.` in the configuration; when weights are asked for is said by the teacher's. This file is
read for help and completion, so it imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from odist.config.key import POSITIVE, key
from odist.errors import UserError
from odist.registry import Part
from odist.stores import check_url

if TYPE_CHECKING:
    from odist.config.schema import Config


@dataclass
class MemoryOptions:
    def check(self, config: Config) -> None:
        launch = config.launch
        if launch.name != "inline" or launch.group is not None:
            given = f"launch={launch.name}" if launch.group is None else f"launch.group={launch.group}"
            raise UserError(f"exchange=memory reaches only groups of one process; with {given} type exchange=store.")


@dataclass
class StoreOptions:
    url: str | None = key(None, "store: folder or fsspec URL; null: exchange/ in the run folder", place="url")
    poll: float = key(1.0, "freshest: seconds between two looks into the store", bounds=POSITIVE)
    keep: int = key(3, "freshest: own snapshots kept in the store", bounds=POSITIVE)

    def check(self, config: Config) -> None:
        check_url(self.url, key="exchange.url")


@dataclass
class PredictionsOptions:
    """What the exchange of predictions cannot do is said here; its period and burn-in are the teacher's."""

    def check(self, config: Config) -> None:
        if config.launch.group is not None:
            raise UserError(
                f"launch.group={config.launch.group} with exchange=predictions: the groups meet in every step, so one command "
                "starts all of them. Leave launch.group out, or type exchange=store."
            )
        if config.data.partition != "identical":
            raise UserError(
                f"data.partition={config.data.partition} with exchange=predictions: the groups predict the same batches. Type "
                "data.partition=identical, or exchange=store for groups that read different rows."
            )
        if config.algorithm.teacher != "peers":
            raise UserError(
                f"algorithm.teacher={config.algorithm.teacher} with exchange=predictions: this teacher reads weights. Type "
                "exchange=store."
            )
        fixed = {
            "exchange.timing": ("lockstep", "nobody can go on alone"),
            "exchange.lag": (0, "predictions are of this very step"),
            "exchange.lookahead": (1, "predictions are of this very step"),
            "exchange.topology": ("all", "every group sees all others"),
            "exchange.publish": ("weights", "predictions are those of the training pass"),
            "algorithm.teacher_precision": ("auto", "predictions are those of the training pass"),
        }
        for name, (only, why) in fixed.items():
            node, _, last = name.partition(".")
            value = getattr(getattr(config, node), last)
            if value != only:
                raise UserError(f"{name}={value} with exchange=predictions: {why}. Type {name}={only}.")


def in_step(config: Config) -> bool:
    """Whether the groups of a run meet in every step: they start, stop and go on together, from one and the same step."""
    return config.exchange.name == "predictions" and config.algorithm.teacher == "peers"


EXCHANGES = {
    "memory": Part("odist.exchange.memory:MemoryExchange", "between groups of one process", MemoryOptions),
    "predictions": Part(
        "odist.exchange.predictions:PredictionExchange", "predictions of the same batches instead", PredictionsOptions
    ),
    "store": Part("odist.exchange.store:StoreExchange", "through a folder or an object store", StoreOptions),
}
