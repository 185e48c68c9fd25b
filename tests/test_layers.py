"""Who may import whom, read from the source: imports at the top and inside functions both count."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "odist"

# Importable by all: the exceptions, the schema, the words of a message, damaged files, the version.
COMMON = {"errors", "config", "config_key", "config_read", "suggest", "damage", "__version__"}
# Interfaces and plain data that a part shows to others; importing one binds nobody to an implementation.
PROTOCOLS = {"tasks.base", "strategies.base", "teachers.base", "exchange.base"}
START = {"cli_show", "conf_folder", "completion", "explain", "launch", "provenance", "validate", "run", "registry"}
ENGINE = {"checkpoint", "data", "log", "losses", "mesh", "metrics", "optim", "rng", "run"}

# A part of the package and the parts that it may import beside its own, COMMON and PROTOCOLS.
ALLOWED = {
    "errors": set(),
    "suggest": set(),
    "config": set(),
    "config_key": set(),
    "config_read": {"conf_folder"},
    "registry": set(),
    "provenance": set(),
    "devices": set(),
    "conf_folder": set(),
    "places": set(),
    "train_arguments": set(),
    "train_help": {"train_arguments"},
    "damage": set(),
    "digest": set(),
    "mending": {"digest", "provenance", "run"},
    "run": set(),
    "sinks": {"registry", "run"},
    "trackers": {"run"},
    "validate": {"devices", "registry", "run", "sinks"},
    "launch": {"places", "run", "validate", "provenance", "mending", "processes", "results", "sinks", "worker"},
    "processes": {"restart", "run", "watch"},
    "restart": {"checkpoint", "exchange", "optim", "run"},
    "watch": {"log", "run"},
    "completion": {"conf_folder", "registry", "train_arguments"},
    "explain": {"train_arguments"},
    "cli_show": {"launch", "run", "churn"},
    "composed": {"conf_folder"},
    "cli_runs": {"cli_show", "run", "train_arguments"},
    "cli_compare": {"cli_runs", "cli_show", "composed", "run", "systems", "train_arguments"},
    "cli_train": {*START, "places", "train_arguments", "train_help"},
    "cli_eval": {"cli_show", "evaluation", "prediction_files", "run"},
    "cli_prepare": {"launch", "prepare", "cli_show"},
    "cli": {
        *START,
        "cli_compare",
        "cli_runs",
        "cli_train",
        "cli_prepare",
        "report",
        "reproduce",
        "tune",
        "retrains",
        "cli_eval",
        "bench",
    },
    "bench": {"benchmarks", "provenance", "report", "run"},
    "benchmarks": {*ENGINE, "wiring", "worker", "prepare", "models"},
    "wiring": {*ENGINE, "registry", "trainer"},
    "worker": {*ENGINE, "results", "trainer", "wiring"},
    "results": {*ENGINE, "evaluation", "prediction", "trainer", "wiring"},
    "evaluation": {"churn", "devices", "log", "prediction", "prediction_files", "run", "wiring"},
    "prediction": set(),
    "reference": {"data", "intervals", "metrics", "run", "tasks"},
    "trainer": {*ENGINE - {"metrics"}, "prediction"},
    "tasks": {"models", "data", "metrics", "intervals", "losses", "registry", "rng"},
    "strategies": {"mesh", "optim"},
    "teachers": {"exchange", "mesh", "losses"},
    "exchange": {"mesh"},
    "models": set(),
    "data": {"rng", "run"},
    "mesh": set(),
    "losses": set(),
    "metrics": {"intervals"},
    "intervals": set(),
    "optim": set(),
    "rng": set(),
    "log": {"run"},
    "checkpoint": {"digest", "run"},
    "prepare": {"data", "places", "run"},
    "churn": {"metrics", "intervals"},
    "systems": set(),
    "prediction_files": {"churn"},
    "row_matching": {"prediction_files"},
    "retrains": {"churn", "prediction_files", "row_matching", "run", "systems"},
    "report": {"run", "churn", "retrains", "intervals", "metrics", "systems"},
    "jobs": {"report", "run"},
    "tune": {"jobs", "report", "run"},
    "reproduce": {"jobs", "provenance", "reference", "report", "run"},
}

# Packages of others, and the only parts that may import them.
RESERVED = {
    "hydra": {"cli_train", "composed", "explain", "config_read", "train_arguments"},
    "omegaconf": {"cli_train", "composed", "explain"},
    "typer": {"cli", "cli_prepare"},
    "matplotlib": {"report"},
    "datasets": {"prepare"},
    "numba": {"prepare", "data", "tasks"},
    "torch": {
        *("worker", "wiring", "prediction", "trainer", "tasks", "strategies", "teachers", "exchange", "models", "data"),
        *("mesh", "losses", "optim", "rng", "checkpoint", "trackers", "benchmarks", "devices", "results"),
    },
    "pickle": {"checkpoint"},  # for the name of the error that torch.load raises
}


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, odist's own without `odist.` in front."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            inside = module == "odist" or (PACKAGE.parent / module.replace(".", "/")).is_dir()
            found |= {f"{module}.{alias.name}" if inside else module for alias in node.names}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stay_within_the_layers(path: Path) -> None:
    part = part_of(path)
    assert part in ALLOWED, f"{part}: a new part needs its row in ALLOWED"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "odist":
            inner = rest.split(".")[0]
            protocol = ".".join(rest.split(".")[:2]) in PROTOCOLS
            assert inner in ALLOWED[part] | COMMON | {part} or protocol, f"{part} imports {name}"
        elif top in RESERVED:
            assert part in RESERVED[top], f"{part} imports {name}"


def test_trainer_knows_no_concrete_part() -> None:
    for name in imports(PACKAGE / "trainer.py"):
        for kind in ("tasks", "strategies", "teachers", "exchange"):
            if name.startswith(f"odist.{kind}"):
                assert name.startswith(f"odist.{kind}.base"), name


def test_tasks_know_no_processes() -> None:
    for path in (PACKAGE / "tasks").glob("*.py"):
        assert not any(name.startswith("torch.distributed") for name in imports(path)), path


def test_the_table_names_no_part_that_is_gone() -> None:
    assert set(ALLOWED) == {part_of(path) for path in FILES}


def test_the_check_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        "def f():\n    from odist import worker\n    import hydra.core\n    from odist.report import plot\n"
    )
    assert imports(file) == {"odist.worker", "hydra.core", "odist.report.plot"}


def loaded_modules(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"torch", "hydra", "omegaconf", "numpy", "pandas", "matplotlib", "datasets", "polars", "numba", "pyarrow"}


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import odist.cli", set()),
        ("import odist.config, odist.validate, odist.launch, odist.completion", set()),
        ("import odist.run, odist.registry, odist.provenance, odist.cli_show", set()),
        ("import odist.churn, odist.retrains, odist.metrics", {"numpy"}),
        ("import odist.report.plot, odist.reproduce", {"numpy", "pandas", "matplotlib"}),
    ],
)
def test_heavy_packages_wait_until_they_are_needed(statement: str, allowed: set[str]) -> None:
    assert loaded_modules(statement) & HEAVY <= allowed


def test_worker_code_imports_no_hydra() -> None:
    assert not loaded_modules("import odist.worker") & {"hydra", "omegaconf", "typer", "matplotlib", "pandas"}


def test_yaml_names_no_callable() -> None:
    for path in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "recipes").rglob("*.yaml")]:
        assert "_target_" not in path.read_text(encoding="utf-8"), path
