"""Token stores: what is written is what is read, and a damaged folder is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from token_stores import write_token_store

from odist.data.tokens import SplitWriter, TokenStore
from odist.errors import UserError

SPECIAL = {"unknown": 0, "sentence_end": 1, "paragraph_end": 2, "document_end": 3}


def random_documents(count: int, vocabulary: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, size=rng.integers(0, 40)) for _ in range(count)]


@pytest.mark.parametrize(("vocabulary", "dtype"), [(1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_round_trip(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    train, validation = random_documents(200, vocabulary), [np.array([vocabulary - 1, 3])]
    store = write_token_store(
        tmp_path / "s", documents={"train": iter(train), "validation": validation}, vocabulary=vocabulary,
        special=SPECIAL, num_bytes={"train": 777, "validation": 5},
    )  # fmt: skip
    assert store.tokens("train").dtype == np.dtype(dtype)
    starts = store.document_starts("train")
    read = [store.tokens("train")[a:b] for a, b in pairwise(starts)]
    assert [list(document) for document in read] == [list(document) for document in train]
    assert (store.num_documents("train"), store.num_tokens("train")) == (200, sum(map(len, train)))
    assert (store.num_bytes("train"), store.num_bytes("validation")) == (777, 5)
    assert store.tokens("validation").tolist() == [vocabulary - 1, 3]
    assert (store.task, store.vocabulary, store.special) == ("lm", vocabulary, SPECIAL)


def test_unigram_counts_the_training_part_only(tmp_path: Path) -> None:
    documents = {"train": [np.array([1, 1, 2]), np.array([1])], "validation": [np.array([0, 0, 4])]}
    store = write_token_store(tmp_path / "s", documents=documents, vocabulary=5, special={})
    assert store.unigram_counts().tolist() == [0, 3, 1, 0, 0]
    np.testing.assert_allclose(store.unigram(), np.array([1, 4, 2, 1, 1]) / 9)


def test_fingerprint_names_content_and_meaning(tmp_path: Path) -> None:
    def made(name: str, train: list[list[int]], special: dict[str, int] = SPECIAL) -> TokenStore:
        documents = {"train": [np.array(document) for document in train]}
        return write_token_store(tmp_path / name, documents=documents, vocabulary=9, special=special)

    first = made("a", [[1, 2], [3]])
    assert made("b", [[1, 2], [3]]).fingerprint == first.fingerprint
    assert made("c", [[1], [2, 3]]).fingerprint != first.fingerprint  # the same tokens, other documents
    assert made("d", [[2, 1], [3]]).fitted_fingerprint == first.fitted_fingerprint  # the same counts
    other = made("e", [[1, 2], [3]], SPECIAL | {"unknown": 8})
    assert (other.fingerprint == first.fingerprint, other.fitted_fingerprint == first.fitted_fingerprint) == (
        False,
    ) * 2


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token id 9 in a vocabulary of 9"):
        write_token_store(tmp_path / "s", documents={"train": [np.array([9])]}, vocabulary=9, special={})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        write_token_store(tmp_path / "s", documents={}, vocabulary=9, special={})


def test_writer_refuses_lengths_that_do_not_sum_up(tmp_path: Path) -> None:
    with SplitWriter(tmp_path, split="train", vocabulary=9) as writer, pytest.raises(ValueError, match="sum to 2"):
        writer.append(np.array([1, 2, 3]), lengths=np.array([1, 1]), num_bytes=0)


def test_damage_is_refused(tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        documents = {"train": [np.array([1, 2]), np.array([3])]}
        return write_token_store(tmp_path / name, documents=documents, vocabulary=9, special={}).path

    with pytest.raises(UserError, match="no such folder"):
        TokenStore.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a prepared store"):
        TokenStore.open(tmp_path / "empty")
    short = fresh("short")
    (short / "train.bin").write_bytes(b"\1\0\2\0")
    with pytest.raises(UserError, match="4 bytes instead of 6"):
        TokenStore.open(short)
    index = fresh("index")
    np.save(index / "train.index.npy", np.array([0, 2, 4]))
    with pytest.raises(UserError, match="end at 4, not at 0 and 3"):
        TokenStore.open(index)
    missing = fresh("missing")
    (missing / "validation.index.npy").unlink()
    with pytest.raises(UserError, match="the file is missing"):
        TokenStore.open(missing)
    rows = fresh("rows")
    (rows / "store.json").write_text(json.dumps({"format": "odist-rows-1"}))
    with pytest.raises(UserError, match="expected 'odist-tokens-1'"):
        TokenStore.open(rows)
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        TokenStore.open(fresh("fine")).tokens("test")
