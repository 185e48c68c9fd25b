"""Groups that differ: what one group of a run has in place of the keys of all, such as a smaller model.

groups=[{model.hidden:[64,32]},{}]     the first of two groups has a smaller network, the second that of the run
"""

from __future__ import annotations

from typing import Any

from odist.config.identity import flatten, to_dict
from odist.config.read import load
from odist.config.schema import Config
from odist.errors import UserError

NODES = ("model", "optim")  # all else is the same for groups that learn the same together


def of_group(config: Config, group: int) -> Config:
    """The configuration of one group; `config` itself where the groups are alike.

    A group that names a model of another kind has that model's own defaults.
    Raises UserError for keys that do not exist or that groups must share.
    """
    if not config.groups or not config.groups[group]:
        return config
    own = dict(flatten(config.groups[group]))
    content: dict[str, Any] = {**to_dict(config), "groups": []}
    if own.get("model.name", config.model.name) != config.model.name:
        content["model"] = {"name": own["model.name"]}
    for key, value in own.items():
        node, _, rest = key.partition(".")
        if node not in NODES or not rest:
            raise UserError(
                f"groups: {key} is the same for all groups. A group may have its own model.KEY and optim.KEY, as in "
                "'groups=[{model.dropout:0.1,optim.lr:0.01},{}]'."
            )
        content[node][rest] = value
    try:
        return load(content)
    except UserError as error:
        raise UserError(f"groups: group {group}: {error}") from None
