"""Give the site the tree of the repository: README, recipes and reports beside docs/, so that links between them hold."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
FOLDERS = ("docs", "recipes", "reports", "examples")
LEFT_OUT = (".py.orig", ".jsonl", ".pyc")  # records are for programs


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the repository that the site shows, at their places in it."""
    root = Path(config.config_file_path).resolve().parent
    own = {
        file.src_uri for file in files if file.abs_src_path and Path(file.abs_src_path).is_relative_to(root / "docs")
    }
    for uri in own:
        files.remove(files.src_uris[uri])
    paths = [root / name for name in PAGES]
    for folder in FOLDERS:
        paths += [path for path in sorted((root / folder).rglob("*")) if path.is_file() and path.suffix not in LEFT_OUT]
    for path in paths:
        uri = path.relative_to(root).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files
