"""Options of `odist prepare`, made from the dataclass of a data set, which says help, choices, bounds and defaults."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from odist.config.key import Key, key_of

SHOWN_UP_TO = 2**31  # larger bounds say nothing to a person


def with_options(defaults: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of its parameter `options`, a dataclass, that `key` describes.

    defaults: shown for options that are left open; an object with fields of the same names
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        kind = own["options"].annotation
        fields = {field.name: field for field in dataclasses.fields(kind) if key_of(field).meaning}
        hints = get_type_hints(kind)
        parameters: list[inspect.Parameter] = []
        for parameter in own.values():
            if parameter.name == "options":
                for name, field in fields.items():
                    default = getattr(defaults, name, field.default)
                    annotation = _option(name, hints[name], key_of(field), default=default)
                    parameters.append(
                        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                    )
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in fields}
            chosen = {name: getattr(value, "value", value) for name, value in values.items() if value is not None}
            command(**given, options=kind(**chosen))

        typed: Any = run  # what typer reads
        typed.__signature__ = inspect.Signature(parameters)
        typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _option(name: str, hint: Any, said: Key, *, default: object) -> Any:
    types = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    kind = types[0]
    if said.choices:
        make_enum: Any = StrEnum
        kind = make_enum(name, {str(choice): choice for choice in said.choices})
    shown = [] if default is None else [str(default)]
    if said.bounds is not None and said.bounds.high <= SHOWN_UP_TO:
        shown.append(str(said.bounds))
    text = said.meaning + (f" [{'; '.join(shown)}]" if shown else "")
    metavar = "FILE" if kind is Path else None
    return Annotated[kind | None, typer.Option(help=text.replace("[", "\\["), metavar=metavar)]
