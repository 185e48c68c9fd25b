"""The wheel alone: what it holds is enough to run, from any folder, without the source tree."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from odist import __version__
from odist.run.folder import Run

ROOT = Path(__file__).resolve().parent.parent

# Third-party packages come from the environment's folder, but not the editable install of odist in it:
# `-S` leaves out every .pth file, and the folders follow the wheel's by hand.
PRELUDE = "import sys; sys.path[1:1] = {folders!r}; "


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the tree as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=120)
    [file] = folder.glob("*.whl")
    assert file.name == f"odist-{__version__}-py3-none-any.whl"
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel, unpacked into an empty folder."""
    target = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def python(code: str, *, installed: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code that sees the unpacked wheel and the environment's other packages, in an empty home."""
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    folders = [str(installed), *site.getsitepackages()]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ODIST", "XDG"))}
    return subprocess.run(
        [sys.executable, "-S", "-P", "-c", PRELUDE.format(folders=folders) + code],
        cwd=cwd,
        env={**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_module(*arguments: str) -> str:
    return f"sys.argv = ['odist', *{list(arguments)!r}]; import runpy; runpy.run_module('odist.cli.main', run_name='__main__')"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_package_configuration_and_recipes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [entry_points] = [name for name in names if name.endswith("/entry_points.txt")]
        assert "odist = odist.cli.main:main" in archive.read(entry_points).decode()
    for folder in ("conf", "recipes"):
        shipped = {name.removeprefix("odist/") for name in names if name.startswith(f"odist/{folder}/")}
        assert shipped == {f"{folder}/{name}" for name in files_below(ROOT / folder)}
    sources = {f"odist/{path.relative_to(ROOT / 'odist')}" for path in (ROOT / "odist").rglob("*.py")}
    assert sources <= names
    assert {name.partition("/")[0] for name in names} == {"odist", f"odist-{__version__}.dist-info"}


def test_installed_alone_it_helps_trains_and_writes_only_where_it_is_told(installed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    before = files_below(installed)
    told = python("import odist; print(odist.__file__)", installed=installed, cwd=work)
    assert Path(told.stdout.strip()).is_relative_to(installed), told.stderr
    helped = python(run_module("--help"), installed=installed, cwd=work)
    assert helped.returncode == 0, helped.stderr
    assert "reproduce" in helped.stdout
    trained = python(run_module("train", "scale=smoke"), installed=installed, cwd=work)
    assert trained.returncode == 0, trained.stderr
    [run] = Run.find(work)
    assert run.finished
    assert run.env["commit"] is None  # not that of the tree it was built from
    assert [path.name for path in work.iterdir()] == ["runs"]
    assert files_below(installed) == before
    assert files_below(tmp_path / "home") == set()


def test_installed_alone_it_finds_its_recipes(installed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    planned = python(run_module("reproduce", "demo", "--dry-run", "--scale", "smoke"), installed=installed, cwd=work)
    assert planned.returncode == 0, planned.stderr
    assert "odist train scale=smoke" in planned.stdout
    assert not list(work.iterdir())
