"""Where the YAML files that ship with odist lie."""

from __future__ import annotations

from pathlib import Path

from odist.errors import OdistError


def config_folder() -> Path:
    """The folder of conf/: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise OdistError("The configuration folder conf/ is missing from this installation of odist; install it again.")
