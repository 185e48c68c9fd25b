"""Tokenizers of the language model: sentencepiece trained here or given, or a WordPiece vocabulary file.

Turns sentences into ids and adds four special ones: unknown, and the ends of sentence, paragraph and document.
An end token stands for the space or line end behind a sentence; the last sentence of a paragraph ends with
paragraph_end alone, the last of a document with document_end alone. Reading text is left to others.

The paper (section 3.1) has 24,006 word pieces "including sentence and paragraph start/end, out of vocabulary
and end-of-document"; where one sentence ends the next begins, so start tokens, which would be certain, are left out.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from odist.errors import UserError

ENDS = {"sentence_end": "</s>", "paragraph_end": "</p>", "document_end": "</d>"}
TRAINING_THREADS = 4  # fixed: sums over threads decide the last bits of the model
CHARACTER_COVERAGE = 0.99995  # of the text; rarer characters are unknown
MAX_SENTENCE_BYTES = 16_384
MAX_WORD = 100  # characters, as in BERT: a longer word is unknown
MODEL_FILE = "tokenizer.model"
VOCABULARY_FILE = "vocab.txt"


class Tokenizer(Protocol):
    """Sentences to ids. `special` maps the four names to ids, `record` is what gives ids their meaning."""

    vocabulary: int
    special: dict[str, int]
    file: str  # name within a store
    data: bytes  # its content

    @property
    def record(self) -> dict[str, Any]: ...

    def encode(self, sentences: Sequence[str], *, threads: int) -> tuple[np.ndarray, np.ndarray]: ...


def open_tokenizer(path: Path) -> Tokenizer:
    """A sentencepiece model, or a WordPiece vocabulary (a *.txt of one piece a line); UserError for anything else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this tokenizer: {error.strerror}.") from None
    if path.suffix == ".txt":
        return WordPiece(data, where=str(path))
    return SentencePiece(data, where=str(path))


class SentencePiece:
    """A sentencepiece model; ends that it lacks as control symbols get ids behind its own."""

    file = MODEL_FILE

    def __init__(self, data: bytes, *, where: str) -> None:
        import sentencepiece

        self.data = data
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
        except RuntimeError:
            raise UserError(f"{where}: no sentencepiece model; expected a *.model file, or a *.txt of word pieces.") from None  # fmt: skip
        self.vocabulary = int(self._model.get_piece_size())
        self.special = {"unknown": int(self._model.unk_id())}
        for name, piece in ENDS.items():
            id = int(self._model.piece_to_id(piece))
            if not (id < self._model.get_piece_size() and self._model.is_control(id)):
                id, self.vocabulary = self.vocabulary, self.vocabulary + 1
            self.special[name] = id

    @property
    def record(self) -> dict[str, Any]:
        return {"kind": "sentencepiece", "file": self.file, "sha256": hashlib.sha256(self.data).hexdigest()}

    def encode(self, sentences: Sequence[str], *, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all sentences, int32 [n], and how many each has, int64 [len(sentences)]; no end tokens."""
        return _flat(self._model.encode(sentences, num_threads=threads))


class WordPiece:
    """BERT's tokenizer over a vocabulary file: words and marks apart, longest piece first (Wu et al. 2016, 4.1).

    A vocabulary without a capital letter means that text is put in lower case and loses its accents.
    """

    file = VOCABULARY_FILE
    _WORDS = re.compile(r"\w+|[^\w\s]")
    _CACHE = 1 << 18  # words

    def __init__(self, data: bytes, *, where: str) -> None:
        self.data = data
        pieces = data.decode("utf-8", "replace").splitlines()
        self._ids = {piece: id for id, piece in enumerate(pieces)}
        if "[UNK]" not in self._ids or not any(piece.startswith("##") for piece in pieces):
            raise UserError(f"{where}: no WordPiece vocabulary; expected one piece a line, with [UNK] and pieces that "
                            "begin with ##.")  # fmt: skip
        self.lower = not any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
        self.special = {"unknown": self._ids["[UNK]"]}
        self.special |= {name: len(pieces) + i for i, name in enumerate(ENDS)}
        self.vocabulary = len(pieces) + len(ENDS)
        self._known: dict[str, list[int]] = {}

    @property
    def record(self) -> dict[str, Any]:
        sha = hashlib.sha256(self.data).hexdigest()
        return {"kind": "wordpiece", "file": self.file, "sha256": sha, "lower": self.lower}

    def encode(self, sentences: Sequence[str], *, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """As SentencePiece.encode; `threads` has no use here."""
        return _flat([self._sentence(text) for text in sentences])

    def _sentence(self, text: str) -> list[int]:
        if self.lower:
            text = text.lower()
            if not text.isascii():
                text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        found: list[int] = []
        for word in _apart(self._WORDS.findall(text)):
            ids = self._known.get(word)
            if ids is None:
                ids = self._word(word)
                if len(self._known) < self._CACHE:
                    self._known[word] = ids
            found += ids
        return found

    def _word(self, word: str) -> list[int]:
        if len(word) > MAX_WORD:
            return [self.special["unknown"]]
        found, start = [], 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                id = self._ids.get(("##" if start else "") + word[start:stop])
                if id is not None:
                    break
            else:
                return [self.special["unknown"]]
            found.append(id)
            start = stop
        return found


def _apart(words: list[str]) -> Iterator[str]:
    # Underscores are marks, ideographs are words of their own.
    for word in words:
        if word.isascii() and "_" not in word:
            yield word
        else:
            yield from re.findall(r"[㐀-䶿一-鿿豈-﫿𠀀-𪛟]|[^_㐀-䶿一-鿿豈-﫿𠀀-𪛟]+|_", word)


def _flat(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
    return flat, lengths


def with_ends(ids: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Ids with one end token behind each sentence.

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
    """A unigram model of `vocabulary` pieces, the four special ones included; the same bits for the same sentences.

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
        return (f"the training part is too small for {vocabulary:,} pieces; it allows {limit.group(1)}. "
                f"Type --vocabulary {limit.group(1)} or less, or give more text.")  # fmt: skip
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if least is not None:
        return (f"{vocabulary:,} pieces are too few: the characters of the training part alone need {least.group(1)}. "
                f"Type a larger --vocabulary.")  # fmt: skip
    return f"sentencepiece could not be trained with {vocabulary:,} pieces: {message.strip().splitlines()[-1]}"
