"""What names a run: the hash of all keys that decide what is learnt, and the keys in which two runs differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from odist.config.key import key_of
from odist.config.schema import Config

# Keys that decide nothing of what is learnt or measured. They are not hashed and may change when a run is continued.
# `data.path`, `algorithm.teachers` and `train.init_from` are places: what lies there is named by `config_hash(content=...)`.
FREE_KEYS = (
    "run",
    "task.threads",
    "data.path",
    "exchange.url",
    "exchange.timeout",
    "exchange.poll",
    "exchange.keep",
    "launch.name",
    "launch.processes",
    "launch.restarts",
    "launch.patience",
    "train.prefetch",
    "train.keep_checkpoints",
    "train.checkpoint_every",
    "train.checkpoint_copy",
    "train.log_every",
)


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as plain dicts, lists and values, in the order of the fields."""
    return dataclasses.asdict(config)


def flatten(content: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, prefix=f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _decides(key: str) -> bool:
    return not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def younger_keys(node: Any, *, prefix: str = "") -> dict[str, Any]:
    """Dotted names and defaults of the keys that are younger than finished runs."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            found |= younger_keys(value, prefix=f"{prefix}{field.name}.")
        elif key_of(field).younger:
            made = field.default_factory
            found[prefix + field.name] = field.default if made is dataclasses.MISSING else made()
    return found


def config_hash(config: Config, *, content: Mapping[str, Any] | None = None) -> str:
    """64 hexadecimal digits naming everything that decides the result.

    Left out are FREE_KEYS and, at their default, keys that are younger than finished runs, which have to keep their hash.

    content: dotted keys that are places (`data.path`, `algorithm.teachers`) with what lies there,
    such as a store's fingerprint; hashed instead of the place.
    """
    younger = younger_keys(config)
    deciding = {
        key: value
        for key, value in flatten(to_dict(config))
        if _decides(key) and not (key in younger and value == younger[key])
    }
    text = json.dumps({**deciding, **(content or {})}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Config, new: Config) -> list[str]:
    """`key: old value -> new value` for every key that differs and decides the result."""
    before, after = dict(flatten(to_dict(old))), dict(flatten(to_dict(new)))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in dict.fromkeys([*before, *after])
        if _decides(key) and before.get(key) != after.get(key)
    ]
