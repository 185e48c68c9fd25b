"""The source of an architecture as one module that needs torch alone: what it takes from odist stands in it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from odist.errors import UserError

PACKAGE = "odist"


def bundled(*modules: str, heading: str) -> str:
    """The sources of modules and of all that they import from odist, each once and before what needs it.

    modules: dotted names; heading: docstring of the result
    Raises UserError for a module that imports odist in a way that cannot be taken apart.
    """
    order: list[str] = []
    bodies: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in bodies:
            return
        bodies[name], needed = _stripped(name)
        for other in needed:
            visit(other)
        order.append(name)

    for module in modules:
        visit(module)
    parts = [f'"""{heading}"""', "from __future__ import annotations", *(bodies[name] for name in order)]
    return "\n\n".join(parts) + "\n"


def _stripped(name: str) -> tuple[str, list[str]]:
    """The source of a module without its docstring and its imports of odist, and the modules that these name."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(f"{name}: has no Python source that could be exported. Choose --format onnx or torch.")
    text = Path(spec.origin).read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    needed, gone = [], set[int]()
    for place, node in enumerate(tree.body):
        docstring = place == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        own = isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if docstring or own or future:
            gone |= set(range(node.lineno - 1, node.end_lineno or node.lineno))
        if own:
            assert isinstance(node, ast.ImportFrom)
            needed.append(str(node.module))
    inner = [node for node in ast.walk(tree) if node not in tree.body]
    if any(isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE) for node in inner) or any(
        isinstance(node, ast.Import) and alias.name.startswith(PACKAGE)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ):
        raise UserError(
            f"{name}: imports odist otherwise than by `from odist.MODULE import NAME` at its top, so that its source cannot "
            "stand alone. Choose --format onnx or torch."
        )
    return "\n".join(line for number, line in enumerate(lines) if number not in gone).strip("\n"), needed
