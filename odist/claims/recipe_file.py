"""The file of a recipe: found by its name, completed by the one that it shares runs with, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from odist.claims.claim import UNTESTED, Claim
from odist.claims.labels import PLACE, PLACES
from odist.claims.quantities import AGAINST
from odist.claims.recipe import Layer, Recipe, System
from odist.config.suggest import choose
from odist.config.typed import Reader, yaml_content
from odist.errors import UserError

WORDING = ("label", "paper_label", "shade")  # what a recipe with `runs_of` may say otherwise of a shared system
OTHER_PREDICTIONS = {"weights": ("last",), "predictor": ("mean", "copies")}
LARGEST_NUMBER_OF_PRIMARY = 2


def recipe_folders() -> list[Path]:
    """Where recipes are looked for: inside an installed package, beside the package, and ./recipes."""
    package = Path(__file__).resolve().parent.parent
    return [package / "recipes", package.parent / "recipes", Path("recipes")]


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read and check a recipe by name (a file of the project's recipes) or by path.

    Raises UserError with the nearest names or keys where something is unknown or missing.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        found = [folder / f"{name_or_path}.yaml" for folder in recipe_folders()]
        present = [candidate for candidate in found if candidate.is_file()]
        if not present:
            known = sorted({file.stem for folder in recipe_folders() for file in folder.glob("*.yaml")})
            nearest = choose(str(name_or_path), known)
            raise UserError(f"no recipe {str(name_or_path)!r}. {nearest} Or give the path of a .yaml file.")
        path = present[0]
    if not path.is_file():
        raise UserError(f"{path}: no such recipe.")
    return parse_recipe(with_shared(path), name=path.stem)


def parse_recipe(text: str, *, name: str) -> Recipe:
    """Read and check the text of a recipe. Raises UserError naming what is unknown, missing or contradictory."""
    where = f"recipe {name}"
    content = _content(text, where)
    try:
        recipe: Recipe = Reader(skips_empty=True).read(Recipe, content, given={"name": name, "text": text})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    claims = tuple(replace(claim, text=" ".join(claim.text.split())) for claim in recipe.claims)
    recipe = replace(
        recipe, description=recipe.description.strip(), claims=claims, scale=recipe.scale or next(iter(recipe.scales))
    )
    _check_systems(recipe, where)
    systems = {
        key: _other_prediction(system, recipe.systems, where=f"{where}, system {key}")
        for key, system in recipe.systems.items()
    }
    recipe = replace(recipe, systems=systems)
    _one_of(recipe.scale, recipe.scales, f"{where}, scale")
    _check_requirements(claims, where)
    _check_decision(recipe, f"{where}, decision")
    _check_tuning(recipe, f"{where}, tuning")
    if recipe.seeds_until is not None:
        _one_of(recipe.seeds_until.claim, [claim.id for claim in claims], f"{where}, seeds_until, claim")
        if recipe.churn_against or any(system.built_on for system in recipe.systems.values()):
            raise UserError(
                f"{where}, seeds_until: a run's teachers, its first weights and what it replaces are of another seed, so seeds "
                "cannot be added one at a time. List them all in `seeds`."
            )
    for system in recipe.frontier.systems if recipe.frontier is not None else ():
        _one_of(system, recipe.systems, f"recipe {name}, frontier, systems")
    return recipe


def _content(text: str, where: str) -> Any:
    try:
        return yaml_content(text)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _check_systems(recipe: Recipe, where: str) -> None:
    """Raise UserError for names of systems that the recipe lacks, and for places in labels that are never filled."""
    systems = recipe.systems
    for key, system in systems.items():
        for place in PLACE.findall(system.label):
            _one_of(place, PLACES, f"{where}, system {key}, label")
        for role, name in (("teachers", system.teachers), ("starts_from", system.starts_from)):
            if name is not None:
                _one_of(name, systems, f"{where}, system {key}, {role}")
                if systems[name].runs_of or systems[name].built_on:
                    raise UserError(
                        f"{where}, system {key}, {role}: {name} is not trained by itself. Name a system that has neither "
                        "`runs_of` nor `teachers` nor `starts_from`."
                    )
    _one_of(recipe.reference, systems, f"{where}, reference")
    if recipe.churn_against is not None:
        _one_of(recipe.churn_against, systems, f"{where}, churn_against")
    for metric in (*recipe.metrics, *(claim.metric for claim in recipe.claims)):
        if metric.startswith(AGAINST):
            _check_against(recipe, metric, where)
    if recipe.targets is not None:
        _one_of(recipe.targets.system, systems, f"{where}, targets, system")
    for kind, layers in (("scales", recipe.scales), ("variants", recipe.variants)):
        for key, layer in layers.items():
            _check_layer(layer, f"{where}, {kind} {key}", systems)
    for claim in recipe.claims:
        named = {"left": claim.left, "right": claim.right, "versus": None}
        for side, system_name in named.items():
            for name in claim.versus or () if system_name is None else (system_name,):
                _one_of(name, systems, f"{where}, claim {claim.id}, {side}")
        for name in claim.along:
            _one_of(name, systems, f"{where}, claim {claim.id}, along")


def _check_against(recipe: Recipe, metric: str, where: str) -> None:
    from odist.measure.churn import PAIR_METRICS

    if recipe.churn_against is None:
        raise UserError(f"{where}: {metric} needs `churn_against`, the system that the others are to replace.")
    _one_of(metric, [f"{AGAINST}{name}" for name in PAIR_METRICS], f"{where}, metrics")


def _other_prediction(system: System, systems: Mapping[str, System], *, where: str) -> System:
    """The system as it is, or with the tuning of the one whose runs it reads.

    Raises UserError for keys that do not go together.
    """
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
    if system.overrides or system.built_on:
        raise UserError(
            f"{where}: its runs are those of {source.name}, so it has no overrides, teachers or first weights."
        )
    if not chosen:
        raise UserError(f"{where}: say `weights: last` or `predictor: mean` or `predictor: copies`.")
    return replace(system, overrides=source.overrides, tuned_with=source.tuned_with or source.name)


def _check_layer(layer: Layer, where: str, systems: Mapping[str, Any]) -> None:
    for name in (*layer.systems, *layer.without):
        _one_of(name, systems, f"{where}, systems")
    for name, reference in layer.references.items():
        _one_of(reference.system, systems, f"{where}, reference {name}, system")


def _check_decision(recipe: Recipe, where: str) -> None:
    decision = recipe.decision
    if decision is None:
        return
    _one_of(decision.claim, [claim.id for claim in recipe.claims], where)
    if decision.untested is None and any(claim.id == decision.claim and claim.requires for claim in recipe.claims):
        raise UserError(f"{where}: lacks {UNTESTED}, as the claim requires another.")


def _check_requirements(claims: Sequence[Claim], where: str) -> None:
    """Raise UserError for an id given twice, an unknown required claim, and claims that require each other."""
    requires = {claim.id: claim.requires for claim in claims}
    if len(requires) < len(claims):
        raise UserError(f"{where}: each claim needs an id of its own, got {', '.join(claim.id for claim in claims)}.")
    for claim in claims:
        if claim.requires is not None:
            _one_of(claim.requires, requires, f"{where}, claim {claim.id}, requires")
    primary = [claim.id for claim in claims if claim.primary]
    if len(primary) > LARGEST_NUMBER_OF_PRIMARY:
        raise UserError(
            f"{where}: {len(primary)} claims are primary ({', '.join(primary)}), a page has one or two. The others are "
            "judged together, each by its p adjusted for their number."
        )
    for claim in claims:
        path = [claim.id]
        while (following := requires[path[-1]]) is not None:
            path.append(following)
            if following == claim.id:
                raise UserError(f"{where}, claim {claim.id}, requires: {' -> '.join(path)} is a circle.")
            if path.count(following) > 1:
                break  # a circle further on, named at one of its own claims


def _check_tuning(recipe: Recipe, where: str) -> None:
    """Raise UserError for a seed that is reported and tuned with, and for a trial that would need another's finished run."""
    if recipe.tuning is None:
        return
    reported = {seed for scale in recipe.scales for name in recipe.variants for seed in recipe.seeds_at(scale, name)}
    own = {seed for layer in recipe.variants.values() for seed in layer.tuning_seeds or ()}
    if both := sorted(reported & ({*recipe.tuning.seeds} | own)):
        raise UserError(f"{where}: seed {both[0]} is also reported. Choose seeds that are not.")
    for name, system in recipe.systems.items():
        if system.built_on and system.tuned_with is None:
            raise UserError(
                f"{where}: {name} begins with finished runs of {system.built_on[0]}, which trials do not have. Name the "
                "system whose setting it uses: `tuned_with`."
            )


def _one_of(value: Any, choices: Any, where: str) -> None:
    if value not in choices:
        raise UserError(f"{where}: {value!r} is unknown. Choose among: {', '.join(choices)}.")


def with_shared(path: Path) -> str:
    """The text of a recipe's file, completed by the recipe beside it that it names with `runs_of`.

    Such a file lists in `systems` those of the shared ones that it is about, or maps them to another wording (label,
    paper_label, shade); what it says itself counts.
    Raises UserError for an unknown recipe or system.
    """
    import yaml

    text, where = path.read_text(encoding="utf-8"), f"recipe {path.stem}"
    content = _content(text, where)
    if not isinstance(content, dict) or not content.get("runs_of"):
        return text
    shared_path = path.with_name(f"{content['runs_of']}.yaml")
    if not shared_path.is_file():
        raise UserError(f"{where}, runs_of: {shared_path}: no such recipe.")
    shared = _content(shared_path.read_text(encoding="utf-8"), f"recipe {shared_path.stem}")
    chosen = content.get("systems")
    if not isinstance(chosen, list | dict):
        raise UserError(f"{where}, systems: expected a list of systems of {shared_path.name}.")
    own = {system: (chosen[system] or {}) if isinstance(chosen, dict) else {} for system in chosen}
    for system, wording in own.items():
        _one_of(system, shared["systems"], f"{where}, systems")
        for key in wording:
            _one_of(key, WORDING, f"{where}, system {system}")
    systems = {system: {**shared["systems"][system], **wording} for system, wording in own.items()}
    merged = {**shared, **content, "systems": systems}
    for kind in ("scales", "variants"):
        for layer in (merged.get(kind) or {}).values():
            for key, pick in (("systems", dict), ("without", list)):
                if layer and layer.get(key):
                    kept = [name for name in layer[key] if name in chosen]
                    layer[key] = {name: layer[key][name] for name in kept} if pick is dict else kept
    return yaml.safe_dump(merged, sort_keys=False, allow_unicode=True, width=120)


def paper_file(name: str) -> str:
    """The text of `paper/NAME` beside the recipes, a CSV of the paper's points. Raises UserError if there is none."""
    for folder in recipe_folders():
        if (folder / "paper" / name).is_file():
            return (folder / "paper" / name).read_text(encoding="utf-8")
    raise UserError(f"no file paper/{name} beside the recipes.")
