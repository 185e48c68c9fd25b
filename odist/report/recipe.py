"""Recipes: which systems are trained with which seeds, and which claims of the paper they decide.

A recipe is a YAML file, checked here key by key. Starting its runs is left to reproduce, reading what
came out to summary.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from odist.errors import UserError

RELATIONS = ("<", ">", "within")


@dataclass(frozen=True)
class System:
    """One row of a table: a name, what it is called in the paper, overrides of `odist train`, the paper's numbers."""

    name: str
    label: str
    overrides: tuple[str, ...] = ()
    paper: dict[str, Any] = field(default_factory=dict)  # metric: value, or [value, plus or minus]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and a comparison of two systems that decides it.

    left < factor * right, left > factor * right, or |left - factor * right| <= margin (`within`)
    """

    id: str
    text: str
    metric: str
    left: str
    right: str
    relation: str
    factor: float = 1.0
    margin: float = 0.0


@dataclass(frozen=True)
class Layer:
    """What a scale or a variant adds: overrides for all systems and for some, seeds, variables."""

    label: str = ""
    overrides: tuple[str, ...] = ()
    systems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    variables: dict[str, str] = field(default_factory=dict)
    needs: str | None = None  # a variable that the caller must give


@dataclass(frozen=True)
class PlannedRun:
    """One training run of a recipe; `name` is unique in it."""

    variant: str
    system: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.system}-s{self.seed}" if self.variant else f"{self.system}-s{self.seed}"


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; `text` is the file itself."""

    name: str
    text: str
    title: str
    description: str
    overrides: tuple[str, ...]
    systems: dict[str, System]
    reference: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    claims: tuple[Claim, ...]
    scale: str
    scales: dict[str, Layer]
    variants: dict[str, Layer]

    def seeds_at(self, scale: str) -> tuple[int, ...]:
        return self.layer(scale).seeds or self.seeds

    def layer(self, scale: str) -> Layer:
        """The scale's additions; UserError for a scale that the recipe does not list."""
        if scale not in self.scales:
            raise UserError(f"recipe {self.name} has no scale {scale!r}. Choose among: {', '.join(self.scales)}.")
        return self.scales[scale]

    def plan(self, scale: str, *, variables: Mapping[str, str]) -> tuple[list[PlannedRun], dict[str, str]]:
        """All runs of the scale, and the variants left out with the variable each of them needs.

        Of two overrides of one key the later wins: recipe, scale, variant, then the system's own in that order.
        """
        of_scale = self.layer(scale)
        runs, left_out = [], {}
        for variant, layer in self.variants.items():
            if layer.needs and not variables.get(layer.needs):
                left_out[variant] = layer.needs
                continue
            values = {**of_scale.variables, **layer.variables, **variables}
            for name, system in self.systems.items():
                own = (system.overrides, of_scale.systems.get(name, ()), layer.systems.get(name, ()))
                lines = [f"scale={scale}", *self.overrides, *of_scale.overrides, *layer.overrides, *sum(own, ())]
                by_key = {line.split("=", 1)[0]: line for line in lines}
                overrides = tuple(self._substitute(line, values) for line in by_key.values())
                runs += [PlannedRun(variant, name, seed, overrides) for seed in self.seeds_at(scale)]
        return runs, left_out

    def _substitute(self, line: str, values: Mapping[str, str]) -> str:
        try:
            return Template(line).substitute(values)
        except (KeyError, ValueError) as error:
            raise UserError(f"recipe {self.name}: the override {line!r} uses an unknown variable ({error}). "
                            f"Known: {', '.join(values) or 'none'}.") from error  # fmt: skip


def recipe_folders() -> list[Path]:
    """Where recipes are looked for: inside an installed package, beside the package, and ./recipes."""
    package = Path(__file__).resolve().parent.parent
    return [package / "recipes", package.parent / "recipes", Path("recipes")]


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read and check a recipe by name (a file of the project's recipes) or by path.

    UserError with the nearest names or keys where something is unknown or missing.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        found = [folder / f"{name_or_path}.yaml" for folder in recipe_folders()]
        present = [candidate for candidate in found if candidate.is_file()]
        if not present:
            known = sorted({file.stem for folder in recipe_folders() for file in folder.glob("*.yaml")})
            raise UserError(f"no recipe {str(name_or_path)!r}. Choose among: {', '.join(known)}, or give the path of "
                            "a .yaml file.")  # fmt: skip
        path = present[0]
    if not path.is_file():
        raise UserError(f"{path}: no such recipe.")
    return parse_recipe(path.read_text(encoding="utf-8"), name=path.stem)


def parse_recipe(text: str, *, name: str) -> Recipe:
    """Check the text of a recipe; see `load_recipe`."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name} is no YAML: {error}") from error
    fields = {"title", "systems", "reference", "seeds", "metrics", "scales"}
    _keys(content, f"recipe {name}", required=fields, optional={"description", "overrides", "claims", "variants",
                                                                "scale"})  # fmt: skip
    systems = {}
    for key, value in content["systems"].items():
        _keys(value, f"recipe {name}, system {key}", required={"label"}, optional={"overrides", "paper"})
        systems[key] = System(key, value["label"], tuple(value.get("overrides") or ()), value.get("paper") or {})
    layers = {
        kind: {key: _layer(value or {}, f"recipe {name}, {kind} {key}", systems) for key, value in entries.items()}
        for kind, entries in (("scales", content["scales"]), ("variants", content.get("variants") or {"": {}}))
    }
    _one_of(content["reference"], systems, f"recipe {name}, reference")
    scale = content.get("scale") or next(iter(layers["scales"]))
    _one_of(scale, layers["scales"], f"recipe {name}, scale")
    return Recipe(
        name=name,
        text=text,
        title=content["title"],
        description=(content.get("description") or "").strip(),
        overrides=tuple(content.get("overrides") or ()),
        systems=systems,
        reference=content["reference"],
        seeds=_seeds(content["seeds"], f"recipe {name}"),
        metrics=tuple(content["metrics"]),
        claims=tuple(_claim(claim, name, systems) for claim in content.get("claims") or ()),
        scale=scale,
        scales=layers["scales"],
        variants=layers["variants"],
    )


def _layer(content: dict[str, Any], where: str, systems: Mapping[str, System]) -> Layer:
    _keys(content, where, optional={"label", "overrides", "systems", "seeds", "variables", "needs"})
    for system in content.get("systems") or {}:
        _one_of(system, systems, f"{where}, systems")
    return Layer(
        label=content.get("label", ""),
        overrides=tuple(content.get("overrides") or ()),
        systems={key: tuple(value) for key, value in (content.get("systems") or {}).items()},
        seeds=_seeds(content["seeds"], where) if content.get("seeds") else None,
        variables={key: str(value) for key, value in (content.get("variables") or {}).items()},
        needs=content.get("needs"),
    )


def _claim(content: dict[str, Any], name: str, systems: Mapping[str, System]) -> Claim:
    _keys(content, f"recipe {name}, claim", required={"id", "text", "statement"})
    where, statement = f"recipe {name}, claim {content['id']}", content["statement"]
    _keys(statement, where, required={"metric", "left", "right", "relation"}, optional={"factor", "margin"})
    for side in ("left", "right"):
        _one_of(statement[side], systems, f"{where}, {side}")
    _one_of(statement["relation"], RELATIONS, f"{where}, relation")
    if statement["relation"] == "within" and not statement.get("margin", 0) > 0:
        raise UserError(f"{where}: the relation `within` needs a margin above 0.")
    return Claim(id=content["id"], text=" ".join(content["text"].split()), **statement)


def _seeds(seeds: Any, where: str) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds must be a list of different whole numbers, got {seeds!r}.")
    return tuple(seeds)


def _one_of(value: Any, choices: Any, where: str) -> None:
    if value not in choices:
        raise UserError(f"{where}: {value!r} is unknown. Choose among: {', '.join(choices)}.")


def _keys(content: Any, where: str, *, required: set[str] = frozenset(), optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected keys and values, got {content!r}.")
    if missing := sorted(required - content.keys()):
        raise UserError(f"{where}: lacks {', '.join(missing)}.")
    for key in content:
        if key not in required | optional:
            near = difflib.get_close_matches(str(key), sorted(required | optional), 1)
            raise UserError(f"{where}: unknown key {key!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
