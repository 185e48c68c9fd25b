"""Token stores of ids that come from no text, for tests."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odist.data.tokens import SPECIAL, SPLITS, UNIGRAM, SplitWriter, TokenStore, store_record
from odist.errors import UserError
from odist.files import save_array, write_atomically


def write_token_store(
    path: Path | str,
    *,
    documents: Mapping[str, Iterable[np.ndarray]],
    vocabulary: int,
    special: Mapping[str, int],
    num_bytes: Mapping[str, int] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> TokenStore:
    """Write ids that come from no text file (a generator, a test) as a store, and open it.

    path: folder to make; UserError when there is one with anything in it
    documents: split -> its documents, integers [length] each, taken one at a time; "train" is needed,
        "validation" may be missing (empty then)
    vocabulary: number of ids V; special: as in store_record, names may be missing where a source has none
    num_bytes: split -> UTF-8 bytes the tokens stand for; one a token where it is not given
    meta: further keys of store.json
    """
    path = Path(path).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists already. Name a new or empty folder.")
    wrong = {name: id for name, id in special.items() if name not in SPECIAL or not 0 <= id < vocabulary}
    if wrong:
        raise ValueError(f"special ids {wrong}: expected names of {SPECIAL} and ids below {vocabulary}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        counts = np.zeros(vocabulary, dtype=np.int64)
        splits = {}
        for split in SPLITS:
            with SplitWriter(temporary, split=split, vocabulary=vocabulary) as writer:
                for document in documents.get(split, ()):
                    ids = np.asarray(document)
                    writer.append(ids, lengths=np.array([len(ids)]), num_bytes=0)
                    if split == "train" and len(ids):
                        counts += np.bincount(ids, minlength=vocabulary)
                writer.bytes = writer.tokens if num_bytes is None else num_bytes.get(split, 0)
                splits[split] = writer.finish()
        save_array(temporary / UNIGRAM, counts)
        tokenizer = {"kind": "none", "file": None, "sha256": None}
        record = store_record(
            vocabulary=vocabulary, special=special, splits=splits, unigram=counts, tokenizer=tokenizer
        )
        write_atomically(temporary / "store.json", json.dumps({**record, **(meta or {})}, indent=1) + "\n")
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return TokenStore.open(path)
