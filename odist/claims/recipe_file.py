"""The file of a recipe: YAML checked key by key, every mistake named with its place and the nearest word."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from odist.claims.labels import PLACE, PLACES
from odist.claims.recipe import (
    FAILS,
    HOLDS,
    OPEN,
    UNTESTED,
    Claim,
    Decision,
    Layer,
    Recipe,
    Reference,
    System,
    Targets,
    Tuning,
)
from odist.errors import UserError

RELATIONS = ("<", ">", "within")
OF_A_SYSTEM = ("paper_curve", "teachers", "tuned_with", "paper_label", "shade", "runs_of", "weights", "predictor")
OTHER_PREDICTIONS = {"weights": ("last",), "predictor": ("mean", "copies")}
WORDING = ("label", "paper_label", "shade")  # what a recipe with `runs_of` may say otherwise of a shared system
LARGEST_NUMBER_OF_PRIMARY = 2
KINDS_OF_REFERENCE = ("logistic",)


def parse_recipe(text: str, *, name: str) -> Recipe:
    """Check the text of a recipe; UserError names what is unknown, missing or contradictory."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name} is no YAML: {error}") from error
    fields = {"title", "systems", "reference", "seeds", "metrics", "scales"}
    _keys(content, f"recipe {name}", required=fields, optional={"description", "overrides", "claims", "variants",
                                                                "scale", "tuning", "decision", "targets", "paper_figure", "runs_of", "judged_later"})  # fmt: skip
    systems = {}
    for key, value in content["systems"].items():
        _keys(value, f"recipe {name}, system {key}", required={"label"}, optional={"overrides", "paper", *OF_A_SYSTEM})
        systems[key] = System(key, value["label"], tuple(value.get("overrides") or ()), value.get("paper") or {},
                              **{option: value.get(option) for option in OF_A_SYSTEM})  # fmt: skip
        for place in PLACE.findall(value["label"]):
            _one_of(place, PLACES, f"recipe {name}, system {key}, label")
    for key, system in systems.items():
        if system.teachers is not None:
            _one_of(system.teachers, systems, f"recipe {name}, system {key}, teachers")
        systems[key] = _other_prediction(system, systems, where=f"recipe {name}, system {key}")
    layers = {
        kind: {key: _layer(value or {}, f"recipe {name}, {kind} {key}", systems) for key, value in entries.items()}
        for kind, entries in (("scales", content["scales"]), ("variants", content.get("variants") or {"": {}}))
    }
    _one_of(content["reference"], systems, f"recipe {name}, reference")
    scale = content.get("scale") or next(iter(layers["scales"]))
    _one_of(scale, layers["scales"], f"recipe {name}, scale")
    claims = tuple(_claim(claim, name, systems) for claim in content.get("claims") or ())
    _check_requirements(claims, f"recipe {name}")
    recipe = Recipe(
        name=name,
        text=text,
        title=content["title"],
        description=(content.get("description") or "").strip(),
        overrides=tuple(content.get("overrides") or ()),
        systems=systems,
        reference=content["reference"],
        seeds=_seeds(content["seeds"], f"recipe {name}"),
        metrics=tuple(content["metrics"]),
        claims=claims,
        scale=scale,
        scales=layers["scales"],
        variants=layers["variants"],
        tuning=_tuning(content["tuning"], f"recipe {name}, tuning") if content.get("tuning") else None,
        targets=_targets(content["targets"], name, systems) if content.get("targets") else None,
        paper_figure=content.get("paper_figure"),
        runs_of=content.get("runs_of"),
        judged_later=bool(content.get("judged_later")),
        decision=_decision(content["decision"], name, claims) if content.get("decision") else None,
    )
    _check_tuning_seeds(recipe)
    return recipe


def with_shared(path: Path) -> str:
    """The text of a recipe's file, completed by the recipe beside it that it names with `runs_of`.

    Such a file lists in `systems` those of the shared ones that it is about, or maps them to another wording (label,
    paper_label, shade); what it says itself counts.
    UserError for an unknown recipe or system.
    """
    import yaml

    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path.stem} is no YAML: {error}") from error
    if not isinstance(content, dict) or not content.get("runs_of"):
        return text
    shared_path = path.with_name(f"{content['runs_of']}.yaml")
    if not shared_path.is_file():
        raise UserError(f"recipe {path.stem}, runs_of: {shared_path}: no such recipe.")
    shared = yaml.safe_load(shared_path.read_text(encoding="utf-8"))
    chosen = content.get("systems")
    if not isinstance(chosen, list | dict):
        raise UserError(f"recipe {path.stem}, systems: expected a list of systems of {shared_path.name}.")
    own = {system: (chosen[system] or {}) if isinstance(chosen, dict) else {} for system in chosen}
    for system, wording in own.items():
        _one_of(system, shared["systems"], f"recipe {path.stem}, systems")
        _keys(wording, f"recipe {path.stem}, system {system}", optional=set(WORDING))
    systems = {system: {**shared["systems"][system], **wording} for system, wording in own.items()}
    merged = {**shared, **content, "systems": systems}
    for kind in ("scales", "variants"):
        for layer in (merged.get(kind) or {}).values():
            for key, pick in (("systems", dict), ("without", list)):
                if layer and layer.get(key):
                    kept = [name for name in layer[key] if name in chosen]
                    layer[key] = {name: layer[key][name] for name in kept} if pick is dict else kept
    return yaml.safe_dump(merged, sort_keys=False, allow_unicode=True, width=120)


def _other_prediction(system: System, systems: Mapping[str, System], *, where: str) -> System:
    """The system as it is, or with the tuning of the one whose runs it reads; UserError for keys that do not go together."""
    chosen = {key: getattr(system, key) for key in OTHER_PREDICTIONS if getattr(system, key) is not None}
    for key, value in chosen.items():
        _one_of(value, OTHER_PREDICTIONS[key], f"{where}, {key}")
    if system.runs_of is None:
        if chosen:
            raise UserError(f"{where}: {' and '.join(chosen)} need `runs_of`, the system whose runs are read.")
        return system
    _one_of(system.runs_of, systems, f"{where}, runs_of")
    source = systems[system.runs_of]
    if source.runs_of is not None:
        raise UserError(f"{where}, runs_of: {source.name} has no runs of its own; name {source.runs_of}.")
    if system.overrides or system.teachers:
        raise UserError(f"{where}: its runs are those of {source.name}, so it has no overrides or teachers.")
    if not chosen:
        raise UserError(f"{where}: say `weights: last` or `predictor: mean` or `predictor: copies`.")
    return replace(system, overrides=source.overrides, tuned_with=source.tuned_with or source.name)


def _targets(content: dict[str, Any], name: str, systems: Mapping[str, System]) -> Targets:
    _keys(content, f"recipe {name}, targets", required={"system", "metric"})
    _one_of(content["system"], systems, f"recipe {name}, targets, system")
    return Targets(**content)


def _tuning(content: dict[str, Any], where: str) -> Tuning:
    _keys(content, where, required={"key", "grid", "seeds", "metric", "overrides"}, optional={"extensions"})
    grid = content["grid"]
    numbers = isinstance(grid, list) and len(grid) >= 3 and all(isinstance(v, int | float) and v > 0 for v in grid)
    if not numbers or any(abs(high / low - 2) > 1e-9 for low, high in pairwise(grid)):
        raise UserError(f"{where}: the grid must be three or more numbers, each twice the one before, got {grid!r}.")
    return Tuning(
        key=str(content["key"]),
        grid=tuple(float(value) for value in grid),
        seeds=_seeds(content["seeds"], where),
        metric=content["metric"],
        overrides=tuple(content["overrides"]),
        extensions=int(content.get("extensions", 3)),
    )


def _check_tuning_seeds(recipe: Recipe) -> None:
    if recipe.tuning is None:
        return
    reported = {seed for scale in recipe.scales for name in recipe.variants for seed in recipe.seeds_at(scale, name)}
    own = {seed for layer in recipe.variants.values() for seed in layer.tuning_seeds or ()}
    if both := sorted(reported & ({*recipe.tuning.seeds} | own)):
        raise UserError(f"recipe {recipe.name}, tuning: seed {both[0]} is also reported. Choose seeds that are not.")


def _decision(content: dict[str, Any], name: str, claims: Sequence[Claim]) -> Decision:
    where, verdicts = f"recipe {name}, decision", [HOLDS, FAILS, OPEN]
    _keys(content, where, required={"claim", *verdicts}, optional={UNTESTED})
    _one_of(content["claim"], [claim.id for claim in claims], where)
    if any(claim.id == content["claim"] and claim.requires for claim in claims):
        verdicts.append(UNTESTED)
        _keys(content, where, required={"claim", *verdicts})
    return Decision(content["claim"], {verdict: " ".join(content[verdict].split()) for verdict in verdicts})


def _reference(key: str, content: dict[str, Any], where: str, systems: Mapping[str, System]) -> Reference:
    _keys(content, where, required={"label", "system", "margin"}, optional={"metric", "kind"})
    _one_of(content["system"], systems, f"{where}, system")
    _one_of(content.get("kind", key), KINDS_OF_REFERENCE, f"{where}, kind")
    return Reference(name=key, **{"kind": key, **content})


def _layer(content: dict[str, Any], where: str, systems: Mapping[str, System]) -> Layer:
    _keys(content, where, optional={"label", "overrides", "systems", "seeds", "variables", "needs", "without", "tuning_seeds", "scales",
                                    "references"})  # fmt: skip
    for system in [*(content.get("systems") or {}), *(content.get("without") or ())]:
        _one_of(system, systems, f"{where}, systems")
    return Layer(
        label=content.get("label", ""),
        overrides=tuple(content.get("overrides") or ()),
        systems={key: tuple(value) for key, value in (content.get("systems") or {}).items()},
        seeds=_seeds(content["seeds"], where) if content.get("seeds") else None,
        variables={key: str(value) for key, value in (content.get("variables") or {}).items()},
        needs=content.get("needs"),
        tuning_seeds=_seeds(content["tuning_seeds"], where) if content.get("tuning_seeds") else None,
        without=tuple(content.get("without") or ()),
        scales=tuple(content["scales"]) if content.get("scales") else None,
        references={key: _reference(key, value, f"{where}, reference {key}", systems)
                    for key, value in (content.get("references") or {}).items()},
    )  # fmt: skip


def _claim(content: dict[str, Any], name: str, systems: Mapping[str, System]) -> Claim:
    _keys(content, f"recipe {name}, claim", required={"id", "text", "statement"}, optional={"requires", "primary"})
    where, statement = f"recipe {name}, claim {content['id']}", content["statement"]
    _keys(statement, where, required={"metric", "left", "right", "relation"}, optional={"factor", "margin", "versus"})
    for side in ("left", "right"):
        _one_of(statement[side], systems, f"{where}, {side}")
    versus = statement.get("versus")
    if versus is not None and (not isinstance(versus, list) or len(versus) != 2):
        raise UserError(f"{where}: versus must name two systems, got {versus!r}.")
    for system in versus or ():
        _one_of(system, systems, f"{where}, versus")
    _one_of(statement["relation"], RELATIONS, f"{where}, relation")
    margin = statement.get("margin", 0)
    if statement["relation"] == "within" and not margin > 0:
        raise UserError(f"{where}: the relation `within` needs a margin above 0.")
    if margin < 0:
        raise UserError(f"{where}: a margin is 0 or more, got {margin:g}.")
    options = {**statement, "versus": tuple(versus) if versus else None, "requires": content.get("requires")}
    options["primary"] = content.get("primary", False)
    if not isinstance(options["primary"], bool):
        raise UserError(f"{where}: primary is true or false, got {options['primary']!r}.")
    return Claim(id=content["id"], text=" ".join(content["text"].split()), **options)


def _check_requirements(claims: Sequence[Claim], where: str) -> None:
    """UserError for an id given twice, an unknown required claim, and claims that require each other in a circle."""
    requires = {claim.id: claim.requires for claim in claims}
    if len(requires) < len(claims):
        raise UserError(f"{where}: each claim needs an id of its own, got {', '.join(claim.id for claim in claims)}.")
    for claim in claims:
        if claim.requires is not None:
            _one_of(claim.requires, requires, f"{where}, claim {claim.id}, requires")
    primary = [claim.id for claim in claims if claim.primary]
    if len(primary) > LARGEST_NUMBER_OF_PRIMARY:
        raise UserError(f"{where}: {len(primary)} claims are primary ({', '.join(primary)}), a page has one or two. The others "
                        "are judged together, each by its p adjusted for their number.")  # fmt: skip
    for claim in claims:
        path = [claim.id]
        while (following := requires[path[-1]]) is not None:
            path.append(following)
            if following == claim.id:
                raise UserError(f"{where}, claim {claim.id}, requires: {' -> '.join(path)} is a circle.")
            if path.count(following) > 1:
                break  # a circle further on, named at one of its own claims


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
