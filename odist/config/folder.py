"""Where the YAML files of choices lie: those that ship with odist, and those of other packages."""

from __future__ import annotations

from pathlib import Path

from odist import registry
from odist.errors import OdistError


def config_folder() -> Path:
    """The folder of conf/: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise OdistError("The configuration folder conf/ is missing from this installation of odist; install it again.")


def config_folders() -> list[Path]:
    """The folder of conf/, then those that other packages add."""
    return [config_folder(), *registry.other_folders()]
