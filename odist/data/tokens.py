"""Memory-mapped token stores: the documents of a split one after the other, with an index of where each begins.

A store is a folder: arrays, the tokenizer's own file, and `store.json`, the commit record, which is written last.

    store.json           format, task, fingerprint, fitted_fingerprint, dtype, vocabulary, special, splits, ...
    splits               name -> {"tokens": n, "documents": m, "bytes": b, "sha256": of both files}
    NAME.bin             token ids, little-endian uint16 or uint32, nothing else; NAME is train or validation
    NAME.index.npy       int64 [m + 1]: document i is tokens [index[i], index[i + 1])
    unigram.npy          int64 [V]: how often each id occurs in the training part
    tokenizer.model      where text was prepared; not for ids made otherwise
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from odist.data.arrays import check_size, load_array
from odist.data.store import Store, damaged, fingerprint_of, open_record
from odist.files import save_array

FORMAT = "odist-tokens-1"
SPLITS = ("train", "validation")
SPECIAL = ("unknown", "sentence_end", "paragraph_end", "document_end")
UNIGRAM = "unigram.npy"


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """The narrowest of uint16 and uint32 that holds ids below `vocabulary`."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


class SplitWriter:
    """Writes one split of a store; memory grows by 8 bytes a document.

    folder: existing folder of the store to be
    split: "train" or "validation"
    vocabulary: number of ids; decides the dtype
    """

    def __init__(self, folder: Path, *, split: str, vocabulary: int) -> None:
        self.folder, self.split, self.vocabulary = folder, split, vocabulary
        self.dtype = token_dtype(vocabulary)
        self.tokens = self.bytes = self.documents = 0
        self._lengths: list[np.ndarray] = []
        self._sha = hashlib.sha256()
        self._file = open(folder / f"{split}.bin", "wb")  # noqa: SIM115 - closed by finish or __exit__

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, ids: np.ndarray, *, lengths: np.ndarray, num_bytes: int) -> None:
        """Add documents.

        ids: integers [n], the tokens of all of them, each below the vocabulary
        lengths: integers [m], tokens of each; they sum to n
        num_bytes: UTF-8 bytes of the text that the tokens stand for
        """
        if int(lengths.sum()) != len(ids):
            raise ValueError(f"{len(ids)} tokens, but document lengths that sum to {int(lengths.sum())}")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            raise ValueError(f"token id {int(ids.max())} in a vocabulary of {self.vocabulary}")
        data = np.ascontiguousarray(ids, dtype=self.dtype).data.cast("B") if len(ids) else b""
        self._file.write(data)
        self._sha.update(data)
        self._lengths.append(np.asarray(lengths, dtype=np.int64))
        self.tokens += len(ids)
        self.documents += len(lengths)
        self.bytes += num_bytes

    def finish(self) -> dict[str, Any]:
        """Bring everything to the disk; returns the entry of store.json."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        starts = np.zeros(self.documents + 1, dtype=np.int64)
        if self._lengths:
            np.cumsum(np.concatenate(self._lengths), out=starts[1:])
        save_array(self.folder / f"{self.split}.index.npy", starts)
        self._sha.update(starts.data.cast("B"))
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "sha256": self._sha.hexdigest(),
        }


def store_record(
    *,
    vocabulary: int,
    special: Mapping[str, int],
    splits: Mapping[str, Mapping[str, Any]],
    unigram: np.ndarray,
    tokenizer: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Content of store.json with its fingerprints; callers may add keys such as "report".

    special: name -> id; "unknown", "sentence_end", "paragraph_end", "document_end"
    splits: what SplitWriter.finish returned
    unigram: int64 [V], counts of the training part
    tokenizer: {"kind": ..., "file": name or None, "sha256": ..., ...}; everything that gives ids their meaning
    """
    fitted = {
        "tokenizer": dict(tokenizer),
        "special": dict(special),
        "vocabulary": vocabulary,
        "unigram": hashlib.sha256(np.ascontiguousarray(unigram, dtype="<i8").tobytes()).hexdigest(),
    }
    content = {"format": FORMAT, "splits": {name: dict(entry) for name, entry in splits.items()}, "fitted": fitted}
    return {
        "format": FORMAT,
        "task": "lm",
        "fingerprint": fingerprint_of(content)[:16],
        "fitted_fingerprint": fingerprint_of(fitted)[:16],
        "dtype": token_dtype(vocabulary).str,
        "vocabulary": vocabulary,
        "special": dict(special),
        "splits": content["splits"],
        "tokenizer": dict(tokenizer),
        "options": dict(options or {}),
    }


class TokenStore(Store[tuple[np.ndarray, np.ndarray]]):
    """A finished store, opened by `TokenStore.open`, read-only."""

    @classmethod
    def open(cls, path: Path | str) -> TokenStore:
        """Open the store in folder `path`. Raises UserError when it is missing, not a token store, or damaged."""
        path = Path(path)
        meta = open_record(path, FORMAT, command="odist prepare text")
        dtype = np.dtype(meta["dtype"])
        return cls(path, meta, {name: _map_split(path, name, entry, dtype) for name, entry in meta["splits"].items()})

    @property
    def vocabulary(self) -> int:
        """Number of ids, the special ones included."""
        return int(self.meta["vocabulary"])

    @property
    def special(self) -> dict[str, int]:
        """Name -> id of "unknown", "sentence_end", "paragraph_end", "document_end"."""
        return {name: int(id) for name, id in self.meta["special"].items()}

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of a split, uint16 or uint32 [n], mapped from the disk and read-only."""
        return self._split(split)[0]

    def document_starts(self, split: str) -> np.ndarray:
        """int64 [m + 1], mapped: document i is tokens [starts[i], starts[i + 1]), its end token included."""
        return self._split(split)[1]

    def num_tokens(self, split: str) -> int:
        return len(self.tokens(split))

    def num_documents(self, split: str) -> int:
        return len(self.document_starts(split)) - 1

    def num_bytes(self, split: str) -> int:
        """UTF-8 bytes of the text that the split's tokens stand for; an end token stands for one byte."""
        self._split(split)
        return int(self.meta["splits"][split]["bytes"])

    def unigram_counts(self) -> np.ndarray:
        """How often each id occurs in the training part, int64 [V] (with `--like`: of the other store)."""
        return load_array(self.path / UNIGRAM, dtype="int64", shape=(self.vocabulary,))

    def unigram(self) -> np.ndarray:
        """Frequencies of the ids in the training part, float64 [V], each count plus one so that none is zero."""
        counts = self.unigram_counts() + 1.0
        return counts / counts.sum()


def _map_split(path: Path, name: str, entry: dict[str, Any], dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    tokens, documents, file = int(entry["tokens"]), int(entry["documents"]), path / f"{name}.bin"
    check_size(file, tokens * dtype.itemsize)
    # an empty file cannot be mapped
    ids = np.memmap(file, dtype=dtype, mode="r", shape=(tokens,)) if tokens else np.empty(0, dtype=dtype)
    index = path / f"{name}.index.npy"
    starts = load_array(index, dtype="int64", shape=(documents + 1,))
    if starts[0] != 0 or starts[-1] != tokens:
        raise damaged(index, f"its documents begin at token {starts[0]} and end at {starts[-1]}, not at 0 and {tokens}")
    return ids, starts
