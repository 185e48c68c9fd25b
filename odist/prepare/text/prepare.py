"""Common Crawl and other text: raw files -> a memory-mapped token store (odist.data.tokens).

Read and clean every source, mark exact duplicates over all of them, train the tokenizer on a sample of the training
part, encode every source (passes.py). The first and the last step run in processes, one source at a time each. The
result depends neither on the number of processes nor on interruptions. Every choice the paper leaves open is an option.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from odist.data.tokens import SPLITS, UNIGRAM, SplitWriter, TokenStore, store_record, token_dtype
from odist.errors import UserError
from odist.files import replacing, save_array
from odist.prepare.job import Preparation, ShowProgress, Stop
from odist.prepare.options import draw
from odist.prepare.pool import Tell, run_jobs
from odist.prepare.text.duplicates import mark_duplicates
from odist.prepare.text.options import TextOptions, TextReport
from odist.prepare.text.passes import (
    BORDER,
    ENCODE_DONE,
    READ_DONE,
    EncodeCounts,
    KeptDocument,
    ReadCounts,
    TextPiece,
    clean_piece,
    encode_piece,
    kept_documents,
    save_border,
)
from odist.prepare.text.report import build_report, sum_counts
from odist.prepare.text.sources import FetchError, find_text_sources
from odist.prepare.text.tokenizer import MODEL_FILE, open_tokenizer, train_sentencepiece
from odist.run.provenance import num_cores

__all__ = ["TextOptions", "TextReport", "prepare_text"]

DUPLICATES_DONE = "duplicates.done"
FEW = 256  # documents of a split, of which duplicates or the draw may leave none


def prepare_text(
    inputs: list[str],
    *,
    output: Path,
    like: Path | None = None,
    options: TextOptions,
    progress: ShowProgress | None = None,
    stop: Stop | None = None,
) -> TextReport:
    """Turn text into a token store; the same call continues an interrupted one, to the same bytes.

    inputs: see find_text_sources
    output: folder to make; done already by the same request: nothing happens and the report says so
    like: a token store whose tokenizer and unigram counts are used; then every document is a validation document,
        unless options.validation_fraction is given
    progress: told the bytes or documents done and in all, and the documents and tokens of this call
    stop: polled; once true, what is done is kept and Interrupted raised
    Raises UserError for wrong input, with nothing left behind (but after a failed download), and Interrupted.
    """
    return TextPreparation(inputs, like=like, options=options, progress=progress, stop=stop).run(output)


class TextPreparation(Preparation[TextOptions, TextReport]):
    """One call; everything that lasts is in the work folder, so that the journal has nothing to say."""

    full_disk = (
        "The work takes about half the size of the text, and 2 or 4 bytes a token. Name an output on another disk."
    )
    resumable = (FetchError,)
    report_type = TextReport

    def find(self, inputs: list[str], like: Path | None) -> None:
        self.other = None if like is None else TokenStore.open(like)
        self.choices = self.options.resolve(self.other)
        self.sources = find_text_sources(inputs, base_url=self.options.base_url)
        self.processes = self.options.processes or num_cores()
        self.documents = self.tokens = 0  # encoded by this call

    def request(self) -> dict[str, Any]:
        given = None if self.options.tokenizer is None else open_tokenizer(self.options.tokenizer)
        return {
            "task": "lm",
            "options": asdict(self.choices),
            "like": None if self.other is None else self.other.fitted_fingerprint,
            "tokenizer": None if given is None else given.record,
            "sources": [source.identity() for source in self.sources],
        }

    @property
    def pieces(self) -> list[TextPiece]:
        return [TextPiece(number, source, self.work, self.choices) for number, source in enumerate(self.sources)]

    def steps(self) -> dict[str, Callable[[], None]]:
        return {
            "read": self._read,
            "duplicates": self._duplicates,
            "split": self._split,
            "tokenizer": self._tokenizer,
            "encode": self._encode,
        }

    def kept(self, step: str) -> str:
        done = sum(piece.path(READ_DONE).is_file() for piece in self.pieces)
        return f"in step {step}; {done} of {len(self.sources)} sources are read and"

    def _run(self, work: Callable[[TextPiece, Tell], None], left: list[TextPiece], *, advance: Tell) -> None:
        run_jobs(work, left, processes=self.processes, progress=advance, stop=self.stop)

    def _read(self) -> None:
        pieces = self.pieces
        left = [piece for piece in pieces if not piece.path(READ_DONE).is_file()]
        total = sum(source.bytes for source in self.sources) if all(source.bytes for source in self.sources) else 0
        done = sum(piece.source.bytes for piece in pieces) - sum(piece.source.bytes for piece in left)
        records = 0

        def advance(num_bytes: int, new_records: int, _: int) -> None:
            nonlocal done, records
            done, records = done + num_bytes, records + new_records
            self.progress("read", done, total, {"documents": records})

        self._run(clean_piece, left, advance=advance)
        counts = [ReadCounts.load(piece) for piece in pieces]
        damaged = next((entry for entry in counts if entry.damage), None)
        if self.choices.damaged == "refuse" and damaged is not None:
            raise UserError(f"{damaged.located[0]}. --damaged keep counts such faults and keeps what is readable.")
        if not sum_counts(entry.documents for entry in counts):
            dropped = sum_counts(entry.dropped for entry in counts)
            why = ", ".join(f"{reason} {number:,}" for reason, number in dropped.most_common()) or "no record was found"
            raise UserError(f"no document is left of the input ({why}). Loosen the filters, or name other files.")

    def _duplicates(self) -> None:
        if not (self.work / DUPLICATES_DONE).is_file():
            mark_duplicates(self.work, num_pieces=len(self.sources), poll=self.poll)
            (self.work / DUPLICATES_DONE).touch()

    def _split(self) -> None:
        # A part that the draw left empty gets the document that was nearest to it, so that two documents are enough.
        if not self.choices.validation_fraction or (self.work / BORDER).is_file():
            return
        drawn = sum_counts(ReadCounts.load(piece).documents for piece in self.pieces)
        border = None
        if min(drawn["train"], drawn["validation"]) < FEW:
            draws: dict[str, list[float]] = {split: [] for split in SPLITS}
            for kept in self._kept_documents():
                value = draw(kept.key, seed=self.choices.split_seed or 0)
                found = draws[kept.split]
                found[:] = [min([value, *found]), max([value, *found])]
            border = _border(draws)
        save_border(self.work, border)

    def _kept_documents(self) -> Iterator[KeptDocument]:
        for piece in self.pieces:
            for number, kept in enumerate(kept_documents(piece, counts=EncodeCounts())):
                if number % 256 == 0:
                    self.poll()
                yield kept

    @property
    def _model(self) -> Path:
        return self.folder / MODEL_FILE

    def _tokenizer(self) -> None:
        if self._model.is_file():
            return
        if self.other is not None:
            tokenizer = open_tokenizer(self.other.path / self.other.meta["tokenizer"]["file"])
        elif self.options.tokenizer is not None:
            tokenizer = open_tokenizer(self.options.tokenizer)
        else:
            assert self.choices.vocabulary is not None
            self.progress("tokenizer", 0, 0, {})
            data = train_sentencepiece(self._sample(), vocabulary=self.choices.vocabulary)
            (self.work / "trained.model").write_bytes(data)
            tokenizer = open_tokenizer(self.work / "trained.model")
        with replacing(self._model) as temporary:
            temporary.write_bytes(tokenizer.data)

    def _sample(self) -> Iterator[str]:
        # Sentences of the training part: whole documents, drawn by their own text, so that order and number of
        # sources change nothing but which documents there are.
        assert self.choices.tokenizer_sentences is not None
        total = sum(ReadCounts.load(piece).sentences for piece in self.pieces)
        share = self.choices.tokenizer_sentences / max(1, total)  # total: 0 where a document was moved to the part
        for kept in self._kept_documents():
            if kept.split == "train" and (share >= 1 or draw(kept.key, seed=0, purpose="tokenizer") < share):
                for paragraph in kept.paragraphs:
                    yield from paragraph

    def _encode(self) -> None:
        pieces = self.pieces
        left = [piece for piece in pieces if not piece.path(ENCODE_DONE).is_file()]
        documents = {piece.number: sum(ReadCounts.load(piece).documents.values()) for piece in pieces}
        total = sum(documents.values())
        done = total - sum(documents[piece.number] for piece in left)
        threads = max(1, self.processes // len(pieces))

        def advance(_: int, new_documents: int, tokens: int) -> None:
            self.documents, self.tokens = self.documents + new_documents, self.tokens + tokens
            counts = {"documents": self.documents, "tokens": self.tokens}
            self.progress("encode", done + self.documents, total, counts)

        self._run(partial(_encode, model=self._model, threads=threads), left, advance=advance)

    def finish(self) -> tuple[dict[str, Any], TextReport]:
        tokenizer = open_tokenizer(self._model)
        read = [ReadCounts.load(piece) for piece in self.pieces]
        encoded = [EncodeCounts.load(piece) for piece in self.pieces]
        empty = [split for split in SPLITS if not any(entry.documents[split] for entry in encoded)]
        if empty and self.choices.validation_fraction:
            raise UserError(
                f"nothing is left of the {empty[0]} part: all of it is repeated elsewhere. Give another --split-seed "
                "or --validation-fraction, or --duplicates keep."
            )
        splits = {split: self._join(split, tokenizer.vocabulary, encoded) for split in SPLITS}
        if self.other is not None:
            unigram = self.other.unigram_counts()
        else:
            unigram = np.zeros(tokenizer.vocabulary, dtype=np.int64)
            for piece in self.pieces:
                unigram += np.load(piece.path("unigram.npy"), allow_pickle=False)
        save_array(self.folder / UNIGRAM, unigram)
        record = store_record(
            vocabulary=tokenizer.vocabulary,
            special=tokenizer.special,
            splits=splits,
            unigram=unigram,
            tokenizer=tokenizer.record,
            options=asdict(self.choices),
        )
        num_bytes = self.partial.num_bytes()
        report = build_report(self.sources, record, read=read, encoded=encoded, store_bytes=num_bytes)
        report.stages = self.stages
        report.documents_per_second = round(self.documents / self.seconds, 1)
        report.tokens_per_second = round(self.tokens / self.seconds, 1)
        return record, report

    def _join(self, split: str, vocabulary: int, encoded: list[EncodeCounts]) -> dict[str, Any]:
        with SplitWriter(self.folder, split=split, vocabulary=vocabulary) as writer:
            for piece, counts in zip(self.pieces, encoded, strict=True):
                lengths = np.load(piece.path(f"{split}.lengths.npy"), allow_pickle=False)
                if len(lengths):
                    ids = np.memmap(piece.path(f"{split}.bin"), dtype=token_dtype(vocabulary), mode="r")
                    writer.append(ids, lengths=lengths, num_bytes=counts.bytes[split])
                self.poll()
            return writer.finish()


def _encode(piece: TextPiece, tell: Tell, *, model: Path, threads: int) -> None:
    encode_piece(piece, tell, tokenizer=open_tokenizer(model), threads=threads)


def _border(draws: dict[str, list[float]]) -> float | None:
    # draws: least and largest of the documents of each split, nothing where there is none
    if all(draws.values()):
        return None
    if not any(draws.values()):
        raise UserError(
            "no document is left of the input without what is repeated. Type --duplicates keep, or give more text."
        )
    least, most = draws["train"] or draws["validation"]
    if least == most:
        raise UserError(
            "one document is left of the input (not counting repeated ones), which cannot be divided into a training "
            "and a validation part. Give more text, or --validation-fraction 0."
        )
    return math.nextafter(least, 1) if draws["train"] else most
