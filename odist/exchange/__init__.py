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


EXCHANGES = {
    "memory": Part("odist.exchange.memory:MemoryExchange", "between groups of one process", MemoryOptions),
    "store": Part("odist.exchange.store:StoreExchange", "through a folder or an object store", StoreOptions),
}
