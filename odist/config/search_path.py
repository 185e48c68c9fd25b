"""Tells Hydra where other packages keep choices of configurations. Imported by the command line alone."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from odist import registry


class OtherPackages(SearchPathPlugin):
    """Adds the folders of the entry points `odist.conf`, behind odist's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in registry.other_folders():
            search_path.append("odist.conf", f"file://{folder}")


def add_other_packages() -> None:
    """Let Hydra find the choices of other packages; more than once is as good as once."""
    Plugins.instance().register(OtherPackages)
