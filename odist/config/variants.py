"""The nodes whose keys depend on their name: the schemas of tasks and models, odist's own and those of other packages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from odist import registry
from odist.config.schema import (
    CriteoConfig,
    DCNV2Config,
    DeepFMConfig,
    ImageNetConfig,
    LMConfig,
    LSTMConfig,
    MLPConfig,
    ModelConfig,
    ResNetConfig,
    TaskConfig,
    TransformerConfig,
    WideResNetConfig,
)
from odist.errors import UserError

# Schema of the `task` and of the `model` node by registry name; conf/task/<name>.yaml opens with
# `<name>_schema@task`, conf/model/<name>.yaml with `<name>_schema`.
TASK_CONFIGS: dict[str, type[TaskConfig]] = {"criteo": CriteoConfig, "lm": LMConfig, "imagenet": ImageNetConfig}
MODEL_CONFIGS: dict[str, type[ModelConfig]] = {
    "mlp": MLPConfig,
    "deepfm": DeepFMConfig,
    "dcn_v2": DCNV2Config,
    "lstm": LSTMConfig,
    "transformer": TransformerConfig,
    "resnet": ResNetConfig,
    "wrn": WideResNetConfig,
}
# Nodes whose keys depend on their name: what the schema says, then the kind of part and odist's own choices.
VARIANTS: dict[type, tuple[str, Mapping[str, type]]] = {
    TaskConfig: ("tasks", TASK_CONFIGS),
    ModelConfig: ("models", MODEL_CONFIGS),
}


def variant(node: type, name: str) -> type | None:
    """Schema of the task or model called `name`; None if there is none of that name.

    node: TaskConfig or ModelConfig
    A class of another package says its options by an attribute `Config`, a dataclass below `node`; without one it has
    the keys of `node` alone. UserError if `Config` is something else.
    """
    kind, own = VARIANTS[node]
    if name in own:
        return own[name]
    if name not in registry.others(kind):
        return None
    schema: Any = getattr(registry.find(kind, name), "Config", node)
    if not (isinstance(schema, type) and issubclass(schema, node) and dataclasses.is_dataclass(schema)):
        raise UserError(f"{kind}: Config of {name!r} is not a dataclass below odist.config.schema.{node.__name__}.")
    return schema


def variants(node: type) -> dict[str, type]:
    """Schemas of all tasks or models by name, odist's own and those of other packages."""
    kind, own = VARIANTS[node]
    found = {name: variant(node, name) for name in registry.others(kind)}
    return {**own, **{name: schema for name, schema in found.items() if schema is not None}}
