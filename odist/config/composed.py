"""The configuration of a few overrides as this version of odist composes it, without a command line of Hydra's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from odist.config.folder import config_folder
from odist.config.read import register


def composed(overrides: Sequence[str]) -> dict[str, Any] | None:
    """The finished configuration, nested; None where it cannot be composed, as with choices of a user's own folder."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            content: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException):
        return None
    return {str(key): value for key, value in content.items()}
