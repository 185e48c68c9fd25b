"""Data sets of the library `datasets`, as inputs named "datasets:NAME?name=CONFIG&split=train"."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

from odist.errors import UserError

DATASETS = "datasets:"
INFO, PARTS = "dataset_info.json", "dataset_dict.json"  # in a folder of save_to_disk


def is_saved(path: Path) -> bool:
    """Tell whether a folder was written by `save_to_disk`."""
    return (path / INFO).is_file() or (path / PARTS).is_file()


def load_dataset(text: str) -> Any:
    """Load the `datasets.Dataset` that an input names: a folder of save_to_disk, or a name that the library knows."""
    name, wanted = _parsed(text)
    import datasets

    split = wanted.get("split", "train")
    try:
        if (Path(name) / PARTS).is_file():
            return datasets.load_from_disk(name)[split]
        if (Path(name) / INFO).is_file():
            return datasets.load_from_disk(name)
        return datasets.load_dataset(name, wanted.get("name"), split=split)
    except Exception as error:  # the library's own errors have no common base
        raise _cannot_load(text, error) from None


def dataset_splits(text: str) -> list[str]:
    """Return the names of the splits of the data set that an input names; UserError when it cannot be loaded."""
    name, wanted = _parsed(text)
    if (Path(name) / PARTS).is_file():
        return list(json.loads((Path(name) / PARTS).read_text(encoding="utf-8"))["splits"])
    if (Path(name) / INFO).is_file():
        return ["train"]
    import datasets

    try:
        return list(datasets.get_dataset_split_names(name, wanted.get("name")))
    except Exception as error:  # the library's own errors have no common base
        raise _cannot_load(text, error) from None


def _parsed(text: str) -> tuple[str, dict[str, str]]:
    name, _, query = text.removeprefix(DATASETS).partition("?")
    wanted = dict(urllib.parse.parse_qsl(query))
    if not name or set(wanted) - {"name", "split"}:
        raise UserError(f"{text}: expected datasets:NAME, or datasets:NAME?name=CONFIG&split=train.")
    return name, wanted


def _cannot_load(text: str, error: Exception) -> UserError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"{text}: datasets cannot load it: {first} Name a folder of save_to_disk or of Parquet files, or a data set "
        "that the library knows."
    )
