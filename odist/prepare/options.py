"""Options of a preparation: checked by what is said beside each, and resolved against the store named by --like."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from odist.config.key import key_of
from odist.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Choices = TypeVar("Choices", bound="DataclassInstance")
SPLITTING = ("split", "validation_fraction", "split_seed")  # options of the validation part, where a data set has them


class Options(Protocol):
    """The options dataclass of a data set; None leaves a choice open."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def validation_fraction(self) -> float | None: ...


def resolve(options: Options, choices: type[Choices], *, like: Path | None, fixed: Mapping[str, Any]) -> Choices:
    """Leave nothing open: what `options` leave open is as in the store `like`, or else the default of `choices`.

    fixed: options that the store named by --like decides; {} without one
    With --like every row is a validation row, so the options of a split are None unless a validation_fraction is given.
    Raises UserError for a value that is not allowed, and for one that contradicts `fixed`.
    """
    check(options)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(choices)}
    for name, theirs in fixed.items():
        if given[name] not in (None, theirs):
            raise UserError(
                f"{name}={given[name]} contradicts {like}, which has {theirs}. With --like, leave {name} out."
            )
    resolved = {name: value for name, value in given.items() if value is not None} | dict(fixed)
    if like is not None and options.validation_fraction is None:
        resolved |= dict.fromkeys(name for name in given if name in SPLITTING)
        wrong = [name for name in SPLITTING if given.get(name) is not None]
        if wrong:
            raise UserError(
                f"{', '.join(wrong)}: with --like every row becomes a validation row, so there is no split. "
                "Give --validation-fraction too to use the other rows for training, or leave it out."
            )
    return choices(**resolved)


def check(options: Options) -> None:
    """Raise UserError for a value outside of the choices or the bounds that its `key` names."""
    for field in dataclasses.fields(options):
        value, said = getattr(options, field.name), key_of(field)
        if value is None:
            continue
        if said.choices and value not in said.choices:
            raise UserError(f"{field.name}={value!r}: expected one of {', '.join(map(str, said.choices))}.")
        if said.bounds is not None and value not in said.bounds:
            raise UserError(f"{field.name}={value}: expected a number {said.bounds}.")


def draw(key: int, *, seed: int, purpose: str = "split") -> float:
    """Return a number in [0, 1) that key, seed and purpose decide, on every machine."""
    data = f"{purpose}:{seed}:{key}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") / 2.0**64
