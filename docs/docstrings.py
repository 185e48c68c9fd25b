"""Show the lines "name: meaning" of a docstring as a list; for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"(?P<names>\w+(?:, \w+)*): ")


class Arguments(griffe.Extension):
    """Rewrites docstrings as they are read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a class, function or module."""
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(text: str) -> str:
    """Make list entries of lines that begin with names and a colon, with the indented lines below them."""
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        found = ARGUMENT.match(line)
        if found and not line.startswith("Source: "):
            if not in_list:
                lines.append("")
            names = ", ".join(f"`{name}`" for name in found["names"].split(", "))
            rest = re.sub(r"; (\w+(?:, \w+)*): ", lambda match: f"; `{match[1]}`: ", line[found.end() :])
            lines.append(f"- {names}: {rest}")
            in_list = True
        else:
            if in_list and line.strip() and not line.startswith("    "):
                lines.append("")
                in_list = False
            lines.append(line)
    return "\n".join(lines)
