"""`odist show`: what one run is, what it did and what came out of it; or how two runs differ."""

from __future__ import annotations

import shlex
import shutil
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.cli.printing import as_json, interval, number, state_of
from odist.cli.runs import age, overrides_of
from odist.cli.train_arguments import typed
from odist.config.composed import composed
from odist.config.identity import flatten
from odist.config.systems import system_of
from odist.errors import UserError
from odist.run.folder import Run

if TYPE_CHECKING:
    import pandas as pd

BASE = ("task", "data", "scale", "algorithm")  # choices whose defaults a run is compared with
OWN = ("seed", "data.path", "run.dir", "run.progress")  # these say which retrain it is and where it lies


def show(paths: Sequence[Path], *, json: bool) -> None:
    """Print one run, or the differences of two."""
    if len(paths) > 2:
        raise UserError(
            f"odist show explains one run or compares two; {len(paths)} were given. `odist runs` lists many."
        )
    runs = [Run.open(path) for path in paths]
    if len(runs) == 1:
        content = explained(runs[0])
        print(as_json(content) if json else "\n".join(_page(content)))
        return
    compared = differences(runs[0], runs[1])
    print(as_json(compared) if json else "\n".join(_differences_page(compared)))


# One run


def explained(run: Run) -> dict[str, Any]:
    """Everything that is shown of one run, as --json prints it."""
    config, status, env = run.config, run.status, run.env
    results = run.results if (run.path / "results.json").is_file() else {}
    training = _training(run)
    return {
        "path": str(run.path),
        "state": state_of(run),
        "step": status.get("step"),
        "num_steps": status.get("num_steps") or run.horizon.get("num_steps"),
        "examples_per_step": run.horizon.get("examples_per_step"),
        "started": status.get("started"),
        "updated": status.get("updated"),
        "overrides": overrides_of(run),
        "changed": _beyond_defaults(config),
        "config": config,
        "data_fingerprint": env.get("data_fingerprint"),
        "metrics": results.get("metrics", {}),
        "predictor": results.get("predictor"),
        "examples_per_model": results.get("examples_per_model"),
        "distinct_examples": results.get("distinct_examples"),
        "groups": results.get("groups", []),
        "seconds": results.get("seconds"),
        "training": training,
        "commit": env.get("commit"),
        "source_hash": env.get("source_hash"),
        "versions": env.get("versions", {}),
        "hardware": env.get("hardware", {}),
        "problems": _problems(run, config, status, env, training),
    }


def _beyond_defaults(config: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Dotted keys whose value differs from the default of task, data, scale and algorithm: [default, value].

    None where a choice of the run does not exist in this installation.
    """
    flat = dict(flatten(config))
    choices = [f"{group}={flat.get(f'{group}.name', flat.get(group))}" for group in BASE]
    content = composed(choices)
    if content is None:
        return None
    defaults = dict(flatten(content))
    return {
        key: [defaults.get(key), value]
        for key, value in flat.items()
        if key not in OWN and value != defaults.get(key) and (key in defaults or value is not None)
    }


def _training(run: Run) -> list[dict[str, Any]]:
    """Teacher, speed and time of every group, from its rows in metrics.jsonl."""
    frame = run.metrics(kind="train")
    if frame.empty:
        return []
    told = []
    for group, rows in frame.groupby("group"):
        heard = rows[rows["teacher_age_steps"].notna()] if "teacher_age_steps" in rows else rows.iloc[:0]
        ages = [int(value) for value in heard.get("teacher_age_steps", [])]
        speeds = [float(value) for value in rows["examples_per_second"].dropna()]
        told.append(
            {
                "group": int(str(group)),
                "teacher_heard_from_step": int(heard["step"].iloc[0]) if ages else None,
                "teacher_age_steps": {"median": statistics.median(ages), "largest": max(ages)} if ages else None,
                "examples_per_second": statistics.median(speeds) if speeds else None,
                "seconds": float(rows["seconds"].iloc[-1]),
                "teacher_swaps": sum(len(swaps) for swaps in rows["swaps"].dropna()) if "swaps" in rows else 0,
                "rejected_snapshots": _largest(rows, "exchange_rejected"),
                "unpublished_snapshots": _largest(rows, "publish_failed"),
                "waited_seconds": round(float(rows["waited_seconds"].sum()), 3) if "waited_seconds" in rows else 0.0,
            }
        )
    return told


def _largest(rows: pd.DataFrame, name: str) -> int:
    """The largest of a column's counts; 0 where no row has it."""
    return int(max(rows[name].dropna(), default=0)) if name in rows else 0


def _problems(
    run: Run, config: Mapping[str, Any], status: Mapping[str, Any], env: Mapping[str, Any], training: Sequence[Any]
) -> list[str]:
    found = []
    state = state_of(run)
    if run.missing_groups:
        found.append(f"groups missing: {run.missing_groups}")
    elif state != "finished":
        found.append(f"not finished ({state}); its `odist train` command continues it")
    if status.get("error"):
        found.append(str(status["error"]))
    peers = config.get("algorithm", {}).get("teacher") == "peers"
    for group in training if peers else ():
        if group["teacher_heard_from_step"] is None and state == "finished":
            found.append(f"group {group['group']} never had a teacher")
        if group["rejected_snapshots"]:
            found.append(f"group {group['group']} rejected {group['rejected_snapshots']} entries of the exchange")
        if group["unpublished_snapshots"]:
            found.append(f"group {group['group']} could not publish {group['unpublished_snapshots']} of its snapshots")
    if state == "finished":
        found += run.results.get("remarks", [])
    if env.get("continued_by"):
        found.append("continued by another version of odist's source than began it")
    path = config.get("data", {}).get("path")
    if path is not None and not Path(path).is_dir():
        found.append(f"its data is no longer at {path}")
    return found


def _page(content: Mapping[str, Any]) -> Iterator[str]:
    config = content["config"]
    model, optim, algorithm = config["model"], config["optim"], config["algorithm"]
    data = config["data"].get("path") or config["data"]["name"]
    per_step = content["examples_per_step"]
    steps = f"step {content['step'] or 0} of {content['num_steps'] or '?'}"
    state = f"{content['state']} after {steps}, {age(content['updated'])} ago"
    trained = f"; trained for {content['seconds']:,.1f} s, all groups together" if content["seconds"] else ""
    yield content["path"]
    yield from _field("state", f"{state}{trained}")
    yield from _field("command", "odist train " + " ".join(map(shlex.quote, content["overrides"])))
    yield from _field("task", f"{config['task']['name']}, data {data}, scale {config['scale']}, seed {config['seed']}")
    workers = f"{config['workers']} worker{'s' * (config['workers'] > 1)} each"
    batch = f"batch {config['train']['batch']}{f' ({per_step} examples a step)' if per_step else ''}"
    models = f"{algorithm['name']}: {config['num_groups']} x {model['name']}"
    yield from _field("algorithm", f"{models}, {workers}, {batch}, {optim['name']} with lr {optim['lr']:g}")
    if content["examples_per_model"]:
        each, distinct = content["examples_per_model"], content["distinct_examples"] or 0
        yield from _field("read", f"{each:,} examples per group, {distinct:,} different ones in all")
    yield from _field("fingerprint", f"{(content['data_fingerprint'] or '-')[:16]} (of the validation data)")
    changed = content["changed"]
    if changed is None:
        yield from _field("changed", "unknown: a choice of this run is not in this installation")
    else:
        words = [f"{key}={typed(new)} (default {typed(old)})" for key, (old, new) in changed.items()]
        yield from _field("changed", ", ".join(words) or "nothing: the defaults of task, data, scale and algorithm")
    for group in content["training"]:
        yield from _field(f"group {group['group']}", _group_line(content, group))
    machine, versions = content["hardware"], content["versions"]
    processor = f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('memory_gb')} GB"
    device = config["launch"]["device"]
    yield from _field("hardware", f"{machine.get('gpu') or 'no GPU'}; {processor}; device {device}")
    own = f"odist {versions.get('odist')} ({(content['commit'] or 'no commit')[:12]})"
    yield from _field("software", f"{own}, torch {versions.get('torch')}, Python {versions.get('python')}")
    yield from _field("problems", "; ".join(content["problems"]) or "none")
    if content["metrics"]:
        predictor = {"mean": "the mean of the groups"}.get(
            content["predictor"], str(content["predictor"]).replace("-", " ")
        )
        yield from ("", f"Results on the validation part, predicted by {predictor}")
        for name, value in content["metrics"].items():
            if isinstance(value, int | float):
                bounds = content["metrics"].get(f"{name}_interval")
                yield f"  {name:<24}{number(value):>12}{f'   95 %: {interval(bounds)}' if bounds else ''}"


def _group_line(content: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    parts = []
    results = (content["groups"][group["group"]] if len(content["groups"]) > group["group"] else None) or {}
    for name in ("log_loss", "cross_entropy"):
        if results.get(name) is not None:
            parts.append(f"{name} {number(results[name])}")
    ages = group["teacher_age_steps"]
    if ages is not None:
        since = group["teacher_heard_from_step"]
        parts.append(
            f"learnt from its teacher from step {since} on, {ages['median']:g} steps old in the median, "
            f"{ages['largest']} at most"
        )
    if group["waited_seconds"]:
        share = group["waited_seconds"] / group["seconds"] if group["seconds"] else 0.0
        parts.append(f"waited {group['waited_seconds']:,.1f} s for its peers ({share:.0%} of its time)")
    if group["examples_per_second"]:
        parts.append(f"{group['examples_per_second']:,.0f} examples/s")
    return "; ".join(parts) or "-"


# Two runs


def differences(first: Run, second: Run) -> dict[str, Any]:
    """What differs between two runs, each as [of the first, of the second]."""
    one, two = explained(first), explained(second)
    flat = [dict(flatten(content["config"])) for content in (one, two)]
    keys = [key for key in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(key) != flat[1].get(key)]
    deciding = {"seed", *system_of(one["config"]), *system_of(two["config"])}
    metrics = [content["metrics"] for content in (one, two)]
    software = [{"commit": c["commit"], "source": c["source_hash"], **c["versions"]} for c in (one, two)]
    return {
        "paths": [one["path"], two["path"]],
        "state": [one["state"], two["state"]],
        "config": {key: [flat[0].get(key), flat[1].get(key)] for key in keys if key in deciding},
        "config_without_effect": {key: [flat[0].get(key), flat[1].get(key)] for key in keys if key not in deciding},
        "data_fingerprint": [one["data_fingerprint"], two["data_fingerprint"]],
        "software": _differing(*software),
        "hardware": _differing(one["hardware"], two["hardware"]),
        "metrics": {
            name: [value, metrics[1][name]]
            for name, value in metrics[0].items()
            if isinstance(value, int | float) and isinstance(metrics[1].get(name), int | float)
        },
        "problems": [one["problems"], two["problems"]],
    }


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [one.get(key), two.get(key)] for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)}


def _differences_page(compared: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        f"A  {compared['paths'][0]}  {compared['state'][0]}",
        f"B  {compared['paths'][1]}  {compared['state'][1]}",
        "",
    )
    same_data = compared["data_fingerprint"][0] == compared["data_fingerprint"][1]
    config = compared["config"]
    if config:
        yield "Configuration (A -> B)"
        yield from _pairs(config)
    else:
        yield "Configuration: no difference in what is learnt"
    if compared["config_without_effect"]:
        yield "Without effect on what is learnt (A -> B)"
        yield from _pairs(compared["config_without_effect"])
    rows = "the same rows" if same_data else "different rows, so results and predictions cannot be compared"
    yield f"Validation data: {rows}"
    for title in ("software", "hardware"):
        if compared[title]:
            yield f"{title.capitalize()} (A -> B)"
            yield from _pairs({key: [_short(value) for value in pair] for key, pair in compared[title].items()})
        else:
            yield f"{title.capitalize()}: the same"
    for letter, problems in zip("AB", compared["problems"], strict=True):
        for problem in problems:
            yield f"Problem of {letter}: {problem}"
    if compared["metrics"]:
        yield from ("", f"  {'result':<24}{'A':>12}{'B':>12}{'B - A':>12}")
        for name, (one, two) in compared["metrics"].items():
            yield f"  {name:<24}{number(one):>12}{number(two):>12}{number(two - one):>12}"
    if same_data and set(config) == {"seed"}:
        yield from ("", f"Retrains of one system: odist churn {' '.join(map(shlex.quote, compared['paths']))}")


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and len(value) >= 40 and " " not in value else value


def _pairs(pairs: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    at = max(14, *(len(key) + 4 for key in pairs))
    for key, (one, two) in pairs.items():
        yield from _field(key, f"{typed(one)} -> {typed(two)}", at=at)


def _field(name: str, text: str, *, at: int = 14) -> Iterator[str]:
    """`name` and its text, which begins at column `at` and is wrapped there; words stay whole."""
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    lines = textwrap.wrap(text, max(20, width - at), break_long_words=False, break_on_hyphens=False) or ["-"]
    yield f"  {name:<{at - 2}}{lines[0]}"
    for line in lines[1:]:
        yield " " * at + line
