"""The two passes over one source: raw records -> cleaned documents, and cleaned documents -> tokens.

A piece is what one source gives, in files of a work folder; each pass writes its record last, so that a piece
is done or begun again.

    N.text.gz      a JSON line a document: [origin, split, key, [[sentence, ...], ...]]
    N.hashes.npy, N.order.npy, N.keep.npy   see duplicates.py: a unit is a paragraph or a document
    N.SPLIT.bin, N.SPLIT.lengths.npy, N.unigram.npy
    N.read.json, N.encode.json   counts; their presence says that the pass is done
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from odist.data.tokens import SPLITS, token_dtype
from odist.files import save_array, write_atomically
from odist.prepare.options import draw
from odist.prepare.pool import Tell
from odist.prepare.text.clean import (
    DroppedRecord,
    ParagraphCounts,
    clean,
    has_long_paragraph,
    language_detector,
)
from odist.prepare.text.duplicates import hash_text, load_keep, save_hashes
from odist.prepare.text.options import ORIGINS, Filters, TextChoices
from odist.prepare.text.records import RecordOptions, read_source
from odist.prepare.text.sources import TextSource
from odist.prepare.text.tokenizer import SentencePiece, with_ends

BORDER = "border.json"
READ_DONE, ENCODE_DONE = "read.json", "encode.json"
LOCATED = 10  # faults that the report locates, per source
BATCH = 8192  # sentences encoded at once
TELL, TELL_BYTES = 256, 1 << 20  # records, and bytes, between two reports of progress


@dataclass
class ReadCounts:
    """What the first pass over a piece found."""

    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)  # by split, duplicates included
    sentences: int = 0  # of the training part
    paragraphs: ParagraphCounts = field(default_factory=ParagraphCounts)
    damage: Counter[str] = field(default_factory=Counter)
    located: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, piece: TextPiece) -> ReadCounts:
        """Read what `clean_piece` wrote."""
        content = json.loads(piece.path(READ_DONE).read_text(encoding="utf-8"))
        paragraphs = ParagraphCounts(content["paragraphs"]["seen"], Counter(content["paragraphs"]["dropped"]))
        counters = {name: Counter(content[name]) for name in ("dropped", "documents", "damage")}
        return cls(**{**content, **counters, "paragraphs": paragraphs})


@dataclass
class EncodeCounts:
    """What the second pass over a piece found."""

    documents: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0  # documents with nothing left
    duplicate_paragraphs: int = 0
    unknown: int = 0

    @classmethod
    def load(cls, piece: TextPiece) -> EncodeCounts:
        """Read what `encode_piece` wrote."""
        content = json.loads(piece.path(ENCODE_DONE).read_text(encoding="utf-8"))
        counters = {name: Counter(content[name]) for name in ("documents", "tokens", "bytes")}
        return cls(**{**content, **counters})


@dataclass
class KeptDocument:
    """A document as it is stored, without repeated paragraphs."""

    split: str
    key: int
    paragraphs: list[list[str]]


@dataclass(frozen=True)
class TextPiece:
    """One source, by number, and where its files go."""

    number: int
    source: TextSource
    folder: Path
    choices: TextChoices

    def path(self, name: str) -> Path:
        return self.folder / f"{self.number:06d}.{name}"

    def filters(self) -> dict[str, Filters]:
        return {origin: self.choices.filters(origin=origin) for origin in ORIGINS}


def clean_piece(piece: TextPiece, tell: Tell) -> None:
    """Make the first pass: read, clean, split, hash. tell: called often, mostly with zeros."""
    choices, filters, counts = piece.choices, piece.filters(), ReadCounts()
    detect = None if choices.language == "any" else language_detector()
    reading = RecordOptions(choices.field, choices.passage_words, main_content=filters["web"].boilerplate)

    def note(place: str, kind: str) -> None:
        counts.damage[kind] += 1
        if len(counts.located) < LOCATED:
            counts.located.append(f"{piece.source.name}: {place}: {kind}")

    hashes: list[int] = []
    position = told = 0

    def at(place: int) -> None:
        nonlocal position, told
        if place - position < TELL_BYTES and counts.records - told < TELL:
            tell(0, 0, 0)
            return
        tell(max(0, place - position), counts.records - told, 0)
        position, told = max(position, place), counts.records

    with _open_text(piece.path("text.gz"), "wt") as file:
        for raw in read_source(piece.source, reading=reading, folder=piece.folder, note=note, at=at):
            counts.records += 1
            if raw.reason:
                counts.dropped[raw.reason] += 1
                continue
            chosen_filters = filters[raw.origin]
            document = clean(raw.lines, filters=chosen_filters, detect=detect, counts=counts.paragraphs)
            if isinstance(document, DroppedRecord):
                counts.dropped[document.reason] += 1
                continue
            counts.documents[document.split] += 1
            if document.split == "train":
                counts.sentences += sum(map(len, document.paragraphs))
            if chosen_filters.duplicates == "paragraphs":
                hashes += [hash_text(" ".join(paragraph)) for paragraph in document.paragraphs]
            elif chosen_filters.duplicates == "documents":
                hashes.append(document.key)
            line = [raw.origin, document.split, document.key, document.paragraphs]
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    save_hashes(piece.folder, piece=piece.number, hashes=np.array(hashes, dtype=np.uint64))
    write_atomically(piece.path(READ_DONE), json.dumps(counts, default=vars))
    tell(max(0, piece.source.bytes - position), counts.records - told, 0)


def _open_text(path: Path, mode: str) -> IO[str]:
    try:
        from isal import igzip
    except ImportError:
        return gzip.open(path, mode, compresslevel=1, encoding="utf-8", newline="\n")  # type: ignore[return-value]
    return igzip.open(path, mode, compresslevel=1, encoding="utf-8", newline="\n")


def kept_documents(piece: TextPiece, *, counts: EncodeCounts) -> Iterator[KeptDocument]:
    """Yield the documents of a piece without duplicates, in order; counts grows by those that are left out."""
    filters, keep, unit = piece.filters(), load_keep(piece.folder, piece=piece.number), 0
    border = load_border(piece.folder)
    with _open_text(piece.path("text.gz"), "rt") as file:
        for line in file:
            origin, split, key, paragraphs = json.loads(line)
            chosen = filters[origin]
            if chosen.duplicates == "paragraphs":
                flags, unit = keep[unit : unit + len(paragraphs)], unit + len(paragraphs)
                if not flags.all():
                    counts.duplicate_paragraphs += len(paragraphs) - int(flags.sum())
                    paragraphs = [text for text, flag in zip(paragraphs, flags, strict=True) if flag]
                    long = chosen.long_paragraph_words
                    if not paragraphs or not has_long_paragraph((" ".join(text) for text in paragraphs), long):
                        counts.duplicates += 1
                        continue
            elif chosen.duplicates == "documents":
                first, unit = bool(keep[unit]), unit + 1
                if not first:
                    counts.duplicates += 1
                    continue
            if border is not None:
                split = "validation" if draw(key, seed=chosen.split_seed) < border else "train"
            yield KeptDocument(split, key, paragraphs)


def save_border(folder: Path, border: float | None) -> None:
    """Save the border that divides the documents of all pieces from now on; None: the share that was asked for."""
    write_atomically(folder / BORDER, json.dumps(border))


def load_border(folder: Path) -> float | None:
    """Load what `save_border` saved, None before."""
    path = folder / BORDER
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class _Packer:
    """Encodes the documents of one split in batches and appends them to the piece's files."""

    def __init__(
        self, piece: TextPiece, *, split: str, tokenizer: SentencePiece, threads: int, counts: EncodeCounts
    ) -> None:
        self.split, self.tokenizer, self.threads, self.counts = split, tokenizer, threads, counts
        self.unigram = np.zeros(tokenizer.vocabulary, dtype=np.int64)
        self.path = piece.path(f"{split}.lengths.npy")
        self.file = open(piece.path(f"{split}.bin"), "wb")  # noqa: SIM115 - closed by encode_piece
        self.sentences: list[str] = []
        self.ends: list[int] = []
        self.documents: list[int] = []  # sentences of each document
        self.lengths: list[np.ndarray] = []

    def add(self, paragraphs: list[list[str]]) -> int:
        """Take a document; return the number of tokens written for it and those before."""
        special, before = self.tokenizer.special, len(self.sentences)
        for paragraph in paragraphs:
            self.sentences += paragraph
            self.ends += [special["sentence_end"]] * (len(paragraph) - 1) + [special["paragraph_end"]]
        self.ends[-1] = special["document_end"]
        self.documents.append(len(self.sentences) - before)
        return self.flush() if len(self.sentences) >= BATCH else 0

    def flush(self) -> int:
        """Encode and write what is held; return the number of its tokens."""
        if not self.sentences:
            return 0
        ids, lengths = self.tokenizer.encode(self.sentences, threads=self.threads)
        packed = with_ends(ids, lengths, np.array(self.ends))
        starts = np.concatenate(([0], np.cumsum(self.documents)[:-1])).astype(np.int64)
        self.lengths.append(np.add.reduceat(lengths + 1, starts))
        counted = np.bincount(packed, minlength=self.tokenizer.vocabulary)
        self.unigram += counted
        self.file.write(packed.astype(token_dtype(self.tokenizer.vocabulary)).tobytes())
        counts, split = self.counts, self.split
        counts.documents[split] += len(self.documents)
        counts.tokens[split] += len(packed)
        counts.unknown += int(counted[self.tokenizer.special["unknown"]])
        counts.bytes[split] += len(self.sentences) + sum(
            len(text) if text.isascii() else len(text.encode()) for text in self.sentences
        )
        self.sentences, self.ends, self.documents = [], [], []
        return len(packed)

    def finish(self) -> int:
        """Write the rest and bring it to the disk; return the number of its tokens."""
        tokens = self.flush()
        self.file.flush()
        os.fsync(self.file.fileno())
        save_array(self.path, np.concatenate(self.lengths) if self.lengths else np.zeros(0, dtype=np.int64))
        return tokens


def encode_piece(piece: TextPiece, tell: Tell, *, tokenizer: SentencePiece, threads: int) -> None:
    """Make the second pass: leave out duplicates, encode, pack. tell: called after every batch."""
    counts = EncodeCounts()
    with ExitStack() as stack:
        packers = {}
        for split in SPLITS:
            packers[split] = _Packer(piece, split=split, tokenizer=tokenizer, threads=threads, counts=counts)
            stack.callback(packers[split].file.close)
        documents = 0
        for kept in kept_documents(piece, counts=counts):
            documents += 1
            tokens = packers[kept.split].add(kept.paragraphs)
            if tokens:
                tell(0, documents, tokens)
                documents = 0
        tokens = sum(packer.finish() for packer in packers.values())
    save_array(piece.path("unigram.npy"), packers["train"].unigram)
    write_atomically(piece.path(ENCODE_DONE), json.dumps(counts, default=vars))
    tell(0, documents, tokens)
