"""The extras and constraints.txt: what `pip install 'odist[EXTRA]'` brings fits beside every pinned version.

Each extra is resolved without a network: from the requirements in pyproject.toml through those that the installed
packages state, every one must be pinned, and by a version that satisfies it.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"odist", "_typeshed"}  # _typeshed: only for annotations
EXTRAS: dict[str, list[str]] = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def pins() -> dict[str, str]:
    """Version by package of constraints.txt."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"constraints.txt does not pin one version: {line}"
            assert canonicalize_name(name) not in found, f"constraints.txt pins {name} twice"
            found[canonicalize_name(name)] = version
    return found


def needed(requirement: Requirement) -> Iterator[str]:
    """The requirements that a requirement brings with it, as written, for this Python and platform."""
    name = canonicalize_name(requirement.name)
    chosen = requirement.extras or {""}
    if name == "odist":
        written = [line for extra in chosen for line in EXTRAS[extra]]
    else:
        written = metadata.requires(requirement.name) or []
    for line in written:
        marker = Requirement(line).marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *chosen}):
            yield line


def problems(extra: str, pinned: dict[str, str]) -> list[str]:
    """What keeps an extra from being installed as pinned, one line each."""
    found: list[str] = []
    seen: set[str] = set()
    waiting = [(line, f"odist[{extra}]" if extra else "odist") for line in [*EXTRAS[""], *EXTRAS[extra]]]
    while waiting:
        line, by = waiting.pop()
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        version = pinned.get(name)
        if name != "odist":
            exact = re.fullmatch(r"===?([^*]+)", str(requirement.specifier))  # as good as a pin
            if version is None and exact is None:
                found.append(f"{by} needs {line}, which constraints.txt does not pin")
                continue
            if version is not None and not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{by} needs {line}, and constraints.txt pins {version}")
            try:
                metadata.distribution(requirement.name)
            except metadata.PackageNotFoundError:
                found.append(f"{by} needs {line}, which is not installed: the extra dev should bring it")
                continue
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key not in seen:
            seen.add(key)
            waiting += [(further, requirement.name) for further in needed(requirement)]
    return sorted(set(found))


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_an_extra_needs_is_pinned_and_fits(extra: str) -> None:
    assert problems(extra, pins()) == []


def test_a_package_that_wants_another_version_is_found() -> None:
    pinned = pins()
    [one] = problems("", {**pinned, "kiwisolver": "0.4"})
    assert one.startswith("matplotlib needs kiwisolver")
    assert one.endswith("constraints.txt pins 0.4")
    missing = problems("mlflow", {name: version for name, version in pinned.items() if name != "sqlparse"})
    assert any("sqlparse" in line and "does not pin" in line for line in missing)


def test_the_tests_have_every_extra_of_the_users() -> None:
    dev = {line for line in needed(Requirement("odist[dev]")) if line.startswith("odist[")}
    [own] = [Requirement(line).extras for line in dev]
    assert own == set(EXTRAS) - {"", "dev"}


def test_no_test_is_skipped_for_want_of_a_package() -> None:
    word = "importor" + "skip"
    assert [path.name for path in (ROOT / "tests").rglob("*.py") if word in path.read_text()] == []


def test_every_package_that_the_code_imports_is_a_requirement_of_its_own() -> None:
    """One that only comes with another package has no lower bound, and may go when the other does without it."""
    wanted = {canonicalize_name(Requirement(line).name) for lines in EXTRAS.values() for line in lines}
    distributions = metadata.packages_distributions()
    for path in (ROOT / "odist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for package in {module.partition(".")[0] for module in modules} - OWN - set(sys.stdlib_module_names):
                known = {canonicalize_name(name) for name in distributions.get(package, [])}
                assert known & wanted, f"{path.relative_to(ROOT)} imports {package}"
