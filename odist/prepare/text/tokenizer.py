"""The tokenizer of the language model: a sentencepiece model, trained here or given.

Turns sentences into ids and adds four special ones: unknown, and the ends of sentence, paragraph and document.
An end token stands for the space or line end behind a sentence; the last sentence of a paragraph ends with
paragraph_end alone, the last of a document with document_end alone.

The paper (section 3.1) has 24,006 word pieces "including sentence and paragraph start/end, out of vocabulary
and end-of-document"; where one sentence ends the next begins, so start tokens, which would be certain, are left out.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from odist.errors import UserError

ENDS = {"sentence_end": "</s>", "paragraph_end": "</p>", "document_end": "</d>"}
TRAINING_THREADS = 4  # fixed: sums over threads decide the last bits of the model
CHARACTER_COVERAGE = 0.99995  # of the text; rarer characters are unknown
MAX_SENTENCE_BYTES = 16_384
MODEL_FILE = "tokenizer.model"


def open_tokenizer(path: Path) -> SentencePiece:
    """Open a sentencepiece model; UserError for anything else."""
    if path.suffix == ".txt":
        raise UserError(
            f"{path}: a WordPiece vocabulary, which is no longer read. Name a sentencepiece *.model, or leave "
            "--tokenizer out to train one."
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this tokenizer: {error.strerror}.") from None
    return SentencePiece(data, where=str(path))


class SentencePiece:
    """A sentencepiece model: sentences to ids. Ends that it lacks as control symbols get ids behind its own.

    data: content of the model's file, which a store keeps as `file`
    special: name -> id of the four special tokens
    """

    file = MODEL_FILE

    def __init__(self, data: bytes, *, where: str) -> None:
        import sentencepiece

        self.data = data
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
        except RuntimeError:
            raise UserError(f"{where}: not a sentencepiece model; expected a *.model file.") from None
        self.vocabulary = int(self._model.get_piece_size())
        self.special = {"unknown": int(self._model.unk_id())}
        for name, piece in ENDS.items():
            id = int(self._model.piece_to_id(piece))
            if not (id < self._model.get_piece_size() and self._model.is_control(id)):
                id, self.vocabulary = self.vocabulary, self.vocabulary + 1
            self.special[name] = id

    @property
    def record(self) -> dict[str, Any]:
        """Return what gives ids their meaning, for store.json."""
        return {"kind": "sentencepiece", "file": self.file, "sha256": hashlib.sha256(self.data).hexdigest()}

    def encode(self, sentences: Sequence[str], *, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all sentences, int32 [n], and how many each has, int64 [len(sentences)]; no end tokens."""
        return _flat(self._model.encode(sentences, num_threads=threads))


def _flat(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
    return flat, lengths


def with_ends(ids: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Put one end token behind each sentence.

    ids: integers [n]; lengths: int64 [k], ids of each sentence; ends: integers [k]
    returns: int32 [n + k]
    """
    result = np.empty(len(ids) + len(ends), dtype=np.int32)
    places = np.cumsum(lengths) + np.arange(len(lengths))
    text = np.ones(len(result), dtype=bool)
    text[places] = False
    result[places] = ends
    result[text] = ids
    return result


def train_sentencepiece(sentences: Iterable[str], *, vocabulary: int) -> bytes:
    """Train a unigram model of `vocabulary` pieces, special ones included; the same bits for the same sentences.

    Text is taken as it is (normalised already); sentences over MAX_SENTENCE_BYTES are left out.
    Raises UserError when the text is too small for so many pieces.
    """
    import sentencepiece

    written = io.BytesIO()
    failed: list[BaseException] = []

    def guarded() -> Iterator[str]:
        try:
            yield from sentences
        except BaseException as error:  # sentencepiece would make a RuntimeError of it
            failed.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=guarded(),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocabulary,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            control_symbols=list(ENDS.values()),
            normalization_rule_name="identity",
            character_coverage=CHARACTER_COVERAGE,
            max_sentence_length=MAX_SENTENCE_BYTES,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if failed:
            raise failed[0] from None
        raise UserError(_training_failed(str(error), vocabulary)) from None
    return written.getvalue()


def _training_failed(message: str, vocabulary: int) -> str:
    limit = re.search(r"value <= (\d+)", message)
    if limit is not None:
        return (
            f"the training part is too small for {vocabulary:,} pieces; it allows {limit.group(1)}. "
            f"Type --vocabulary {limit.group(1)} or less, or give more text."
        )
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if least is not None:
        return (
            f"{vocabulary:,} pieces are too few: the characters of the training part alone need {least.group(1)}. "
            "Type a larger --vocabulary."
        )
    return f"sentencepiece could not be trained with {vocabulary:,} pieces: {message.strip().splitlines()[-1]}"
