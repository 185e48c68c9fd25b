"""Who may import whom, read from the source: imports at the top and inside functions both count."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "odist"

# Importable by all: the exceptions, files that appear whole, the configuration, the version.
COMMON = {"errors", "files", "config", "__version__"}
# Interfaces and plain data that a part shows to others; importing one binds nobody to an implementation.
PROTOCOLS = {"tasks.base", "strategies.base", "teachers.base", "exchange.base"}
# What a room's table says: the options of its parts, without the parts.
TABLES = {"strategies", "teachers", "exchange"}

# A room of the package and the rooms that it may import beside its own, COMMON and PROTOCOLS. Reading down, a room
# imports only rooms that stand above it.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "registry": set(),
    "stores": set(),
    "config": {"registry"},
    "rng": set(),
    "mesh": set(),
    "sums": {"mesh"},
    "losses": set(),
    "wrapping": set(),
    "optim": set(),
    "models": set(),
    "exchange": {"mesh", "registry", "rng", "stores"},
    "run": {"registry", "stores"},
    "data": {"rng"},
    "measure": {"run", "stores"},
    "tasks": {"data", "losses", "measure", "models", "registry", "rng"},
    "products": set(),
    "strategies": {"mesh", "optim", "registry", "rng", "sums"},
    "teachers": {"exchange", "losses", "measure", "mesh", "optim", "products", "registry", "wrapping"},
    "own_loop": {"exchange", "losses", "mesh", "stores", "teachers", "wrapping"},
    "integrations": {"own_loop", "wrapping"},
    "engine": {"data", "losses", "measure", "mesh", "optim", "products", "registry", "rng", "run"},
    "launch": {"data", "engine", "exchange", "measure", "mesh", "optim", "registry", "run", "stores", "strategies"},
    "prepare": {"data", "run"},
    "deploy": {"data", "engine", "measure", "models", "prepare", "run", "tasks"},
    "claims": {"data", "measure", "run", "tasks"},
    "bench": {
        "sums",
        "claims",
        "data",
        "engine",
        "exchange",
        "launch",
        "losses",
        "mesh",
        "models",
        "optim",
        "prepare",
        "rng",
        "run",
        "teachers",
    },
    "cli": {"bench", "claims", "deploy", "engine", "launch", "measure", "prepare", "registry", "run"},
    "__main__": {"cli"},
}

# Packages of others, and the only rooms, or modules of a room, that may import them.
RESERVED = {
    "hydra": {
        "cli.explain",
        "cli.train",
        "cli.train_arguments",
        "config.composed",
        "config.read",
        "config.search_path",
    },
    "omegaconf": {"cli.explain", "cli.train", "config.composed"},
    "typer": {"cli"},
    "matplotlib": {"claims"},
    "datasets": {"prepare"},
    "numba": {"prepare", "data", "tasks"},
    "torch": {
        *(
            "engine",
            "tasks",
            "strategies",
            "teachers",
            "exchange",
            "models",
            "data",
            "mesh",
            "sums",
            "losses",
            "products",
            "wrapping",
            "optim",
            "rng",
            "own_loop",
            "integrations",
            "bench",
            "deploy",
        ),
        *(
            "launch.worker",
            "launch.results",
            "launch.job",
            "measure.images",
            "measure.language",
            "run.trackers",
        ),
    },
    "transformers": {"integrations.transformers"},
    "pytorch_lightning": {"integrations.lightning"},
    "pickle": {"engine.checkpoint"},  # for the name of the error that torch.load raises
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


def is_in_table(name: str) -> bool:
    """Whether a name such as `teachers.PeersOptions` is one of a room's table of parts."""
    room, _, rest = name.partition(".")
    return room in TABLES and bool(rest) and not (PACKAGE / room / f"{rest.partition('.')[0]}.py").is_file()


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stay_within_the_layers(path: Path) -> None:
    part = part_of(path)
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    assert part in ALLOWED, f"{part}: a new room needs its row in ALLOWED"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "odist":
            inner = rest.split(".")[0]
            protocol = ".".join(rest.split(".")[:2]) in PROTOCOLS or is_in_table(rest)
            assert inner in ALLOWED[part] | COMMON | {part} or protocol, f"{part} imports {name}"
        elif top in RESERVED:
            assert RESERVED[top] & {part, module}, f"{module} imports {name}"


def test_trainer_knows_no_concrete_part() -> None:
    for name in imports(PACKAGE / "engine" / "trainer.py"):
        for kind in ("tasks", "strategies", "teachers", "exchange"):
            if name.startswith(f"odist.{kind}"):
                assert name.startswith(f"odist.{kind}.base"), name
        assert name != "odist.engine.wiring", "the trainer is handed its parts"


def test_tasks_know_no_processes() -> None:
    for path in (PACKAGE / "tasks").glob("*.py"):
        assert not any(name.startswith("torch.distributed") for name in imports(path)), path


def test_the_table_names_no_room_that_is_gone() -> None:
    assert set(ALLOWED) == {part_of(path) for path in FILES}


def test_no_room_imports_one_below_it() -> None:
    """The table's order is one in which the rooms could be built: there is no circle, not even through protocols."""
    order = list(ALLOWED)
    for path in FILES:
        room = part_of(path)
        for name in imports(path):
            top, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if top == "odist" and other in ALLOWED and other != room:
                assert order.index(other) < order.index(room), f"{room} imports {name}, which stands below it"


def test_the_check_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        "def f():\n    from odist.launch import worker\n    import hydra.core\n    from odist.claims import plot\n"
    )
    assert imports(file) == {"odist.launch.worker", "hydra.core", "odist.claims.plot"}


def loaded_modules(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {
    "torch",
    "scipy",
    "hydra",
    "omegaconf",
    "numpy",
    "pandas",
    "matplotlib",
    "datasets",
    "polars",
    "numba",
    "pyarrow",
}


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import odist", set()),
        ("import odist.cli.main", set()),
        ("import odist.config.schema, odist.launch.check, odist.launch.launch, odist.cli.completion", set()),
        ("import odist.run.folder, odist.registry, odist.run.provenance, odist.cli.printing", set()),
        ("import odist.measure.churn, odist.measure.predictions, odist.measure.metrics", {"numpy"}),
        ("import odist.claims.plot, odist.claims.reproduce", {"numpy", "pandas", "matplotlib"}),
    ],
)
def test_heavy_packages_wait_until_they_are_needed(statement: str, allowed: set[str]) -> None:
    assert loaded_modules(statement) & HEAVY <= allowed


def test_worker_code_imports_no_hydra() -> None:
    assert not loaded_modules("import odist.launch.worker") & {"hydra", "omegaconf", "typer", "matplotlib", "pandas"}


def test_yaml_names_no_callable() -> None:
    for path in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "recipes").rglob("*.yaml")]:
        assert "_target_" not in path.read_text(encoding="utf-8"), path
