"""A store without its rows: what a preparation has fitted, in few bytes, kept by whoever needs the data no more.

It opens as any store does, so `odist prepare --like` and the tasks read it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from odist.data import images, rows, tokens
from odist.data.rows import npy_header
from odist.data.store import read_record
from odist.files import save_array, write_atomically

NO_ROWS = "empty"  # the key of store.json that says so


def keep_fitted(store: Path, target: Path) -> None:
    """Write a store without rows that gives ids, numbers and classes the meaning that they have in `store`.

    target: a folder that may be there already, then nothing is done; of a format that is not odist's nothing is written
    """
    meta = read_record(store)
    if meta is None or target.exists():
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        if not _write(store, meta, temporary):
            return
        meta = {key: value for key, value in meta.items() if key not in ("request", "report")}
        write_atomically(temporary / "store.json", json.dumps({**meta, NO_ROWS: True}, indent=1) + "\n")
        os.rename(temporary, target)
    except OSError:
        if not target.exists():  # another group's process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(store: Path, meta: dict[str, Any], folder: Path) -> bool:
    """Write all files but the record, and change the record's splits; whether the format is known."""
    if meta["format"] == rows.FORMAT:
        for split in meta["splits"].values():
            (folder / split["file"]).write_bytes(npy_header(0, int(meta["columns"])))
            split |= {"start": 0, "stop": 0}
        if meta.get("key_bytes"):
            (folder / rows.KEYS_FILE).touch()
            meta["key_bytes"] = 0
        if rare := meta["fitted"].get("rare"):
            shutil.copyfile(store / rare["file"], folder / rare["file"])
    elif meta["format"] == tokens.FORMAT:
        for name, split in meta["splits"].items():
            (folder / f"{name}.bin").touch()
            save_array(folder / f"{name}.index.npy", np.zeros(1, dtype=np.int64))
            split |= {"tokens": 0, "documents": 0, "bytes": 0}
        for file in (tokens.UNIGRAM, meta["tokenizer"]["file"]):
            if file is not None:
                shutil.copyfile(store / file, folder / file)
    elif meta["format"] == images.FORMAT:
        shutil.copyfile(store / images.CLASSES, folder / images.CLASSES)
        for name, split in meta["splits"].items():
            split |= {"images": 0, "bytes": 0}
            save_array(folder / f"labels-{name}.npy", np.zeros(0, dtype=np.int64))
            if meta["decoded"] is not None:
                side = int(meta["decoded"])
                save_array(folder / f"images-{name}.npy", np.zeros((0, side, side, 3), dtype=np.uint8))
            else:
                save_array(folder / f"offsets-{name}.npy", np.zeros((0, 2), dtype=np.int64))
                (folder / f"images-{name}.bin").touch()
    else:
        return False
    return True
