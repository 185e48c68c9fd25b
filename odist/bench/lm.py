"""The rows of `odist bench lm`: recurrence and loss of the language model, reading and encoding of its text.

About two minutes, every ratio from one interleaved run. Goals come from measurements of what the machine allows.
"""

from __future__ import annotations

import gzip
import importlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from odist.bench.rounds import Arm, Ratio, Row, compare, interleave
from odist.config.schema import OptimConfig
from odist.errors import OdistError
from odist.losses import LossOptions, Soft, multiclass
from odist.models.lstm import LSTM, LayerNormLSTM
from odist.optim import Clock, Optimizer
from odist.prepare.text.duplicates import mark_duplicates
from odist.prepare.text.options import BASE_URL, PAPER_VOCABULARY, TextOptions
from odist.prepare.text.passes import BATCH, EncodeCounts, TextPiece, clean_piece, encode_piece, kept_documents
from odist.prepare.text.records import RecordOptions, read_source
from odist.prepare.text.sources import find_text_sources
from odist.prepare.text.tokenizer import open_tokenizer, train_sentencepiece
from odist.prepare.text.warc import read_records
from odist.prepare.unpack import unpack
from odist.run.provenance import num_cores

LEXICON = 20_000  # words of the synthetic text
CUTS, MENU = (0, 2, 5, 6, 15, 29, 40, 57, 65, 77), 3  # where its lines and sentences end: three of a menu, a paragraph


@dataclass(frozen=True)
class Model:
    """A language model and its step of `batch` sequences; steps: of one turn."""

    vocabulary: int
    embedding_dim: int
    hidden: tuple[int, ...]
    batch: int
    steps: int


@dataclass(frozen=True)
class Size:
    """Sizes of the measurement; small: scale=small on synthetic text; paper: Anil et al. 2018, section 3.1.

    batch: sequences of the recurrence; records: texts of 6 kB that are read; encoded: that are encoded
    pieces: of the tokenizer
    """

    small: Model = Model(1_000, 64, (128,), batch=32, steps=16)
    paper: Model = Model(PAPER_VOCABULARY, 256, (1024, 1024), batch=8, steps=2)
    unroll: int = 32
    batch: int = 32
    records: int = 9_000
    encoded: int = 1_500
    pieces: int = 8_000


def measure(*, rounds: int, say: Callable[[str], None], size: Size | None = None) -> list[Row]:
    """Measure every row, in a temporary folder that is gone afterwards.

    say: told what is going on, and what is skipped
    """
    size = size or Size()
    say(f"recurrence: {rounds} rounds with layer norm and without")
    rows = _recurrence(size, rounds=rounds, say=say)
    for name, model in (("small", size.small), ("paper", size.paper)):
        say(f"loss, {model.vocabulary:,} classes: {rounds} rounds with and without soft targets")
        rows.append(_loss(name, model, size, rounds=rounds))
    with tempfile.TemporaryDirectory(prefix="odist-bench-") as folder:
        if find_spec("warcio") is None:
            say("reading WET: skipped, warcio is not installed. Type: pip install warcio")
        else:
            say(f"reading WET: {rounds} rounds of odist and warcio, {size.records:,} records")
            rows.extend(_reading(Path(folder), size, rounds=rounds))
        say(f"encoding: {rounds} rounds of the preparation's stage and of bare sentencepiece")
        rows.append(_encoding(Path(folder), size, rounds=rounds))
    return rows


def _recurrence(size: Size, *, rounds: int, say: Callable[[str], None]) -> list[Row]:
    width, hidden = size.paper.embedding_dim, size.paper.hidden
    normed = nn.ModuleList(LayerNormLSTM(*sizes) for sizes in zip([width, *hidden], hidden, strict=False))
    plain = nn.LSTM(width, hidden[0], num_layers=len(hidden))
    inputs = torch.randn(size.unroll, size.batch, width, requires_grad=True)
    gradient = torch.randn(size.unroll, size.batch, hidden[-1])

    def with_norm() -> Tensor:
        values = inputs
        for layer, units in zip(normed, hidden, strict=True):
            values, _ = layer(values, torch.zeros(2, size.batch, units))
        return values

    def run(_: int, *, forward: Callable[[], Tensor], module: nn.Module, threads: int) -> None:
        torch.set_num_threads(threads)  # inputs: the embedding below the layers needs their gradient
        torch.autograd.grad(forward(), [inputs, *module.parameters()], gradient)

    counts = [count for count in (1, 2) if count <= num_cores()]
    if len(counts) == 1:
        say("recurrence on two threads: skipped, this process may use only one core")
    arms = []
    for count in counts:
        for label, module, forward in (("normed", normed, with_norm), ("plain", plain, lambda: plain(inputs)[0])):
            arms.append(Arm(f"{label} {count}", partial(run, forward=forward, module=module, threads=count), 1))
    timings = interleave(arms, rounds=rounds, warm_up=1)
    what = f"layer-norm LSTM / nn.LSTM, forward and backward, {len(hidden)} x {hidden[0]}"
    ratios = [
        Ratio(f"lstm_threads_{count}", f"normed {count}", f"plain {count}", f"{what}, threads: {count}", goal=1.26)
        for count in counts
    ]
    return [compare(timings, ratio, batch=size.unroll * size.batch) for ratio in ratios]


class Training:
    """Training steps of a language model on random tokens; the teacher's logits are given, its forward is not timed."""

    def __init__(self, model: Model, *, unroll: int) -> None:
        torch.manual_seed(0)
        self.model = LSTM(model.vocabulary, embedding_dim=model.embedding_dim, hidden=model.hidden)
        config = OptimConfig(name="adam", lr=0.001, clip_norm=1.0)  # as conf/optim/adam.yaml and the presets
        self.optimizer = Optimizer(self.model, config, clock=Clock(model.batch, 1_000_000))
        self.tokens, self.targets = torch.randint(model.vocabulary, (2, model.batch, unroll))
        self.soft = Soft((torch.randn(model.batch, unroll, model.vocabulary),))
        self.carry: list[Tensor] | None = None
        self.loss = torch.zeros(())  # of the last step, per token: the sum of both parts

    def run(self, steps: int, *, taught: bool) -> None:
        """Make `steps` steps; taught: with the soft targets beside the hard ones."""
        torch.set_num_threads(1)
        soft = self.soft if taught else None
        for step in range(steps):
            logits, self.carry = self.model(self.tokens, self.carry)
            weights = torch.ones(self.targets.shape)
            sums = multiclass(logits, self.targets, weights=weights, options=LossOptions(), soft=soft)
            self.loss = sums.total / self.targets.numel()
            self.optimizer.zero_grad()
            self.loss.backward()
            self.optimizer.update(step)


def _loss(name: str, model: Model, size: Size, *, rounds: int) -> Row:
    training = Training(model, unroll=size.unroll)  # one for both arms: the same memory, the same state
    arms = [Arm(label, partial(training.run, taught=label == "taught"), model.steps) for label in ("taught", "plain")]
    tokens = model.batch * size.unroll
    text = (
        f"training step with hard and given soft targets / with hard ones, {model.vocabulary:,} classes, "
        f"LSTM {model.embedding_dim}-{'-'.join(map(str, model.hidden))}, {tokens} tokens"
    )
    ratio = Ratio(f"soft_loss_{name}", "taught", "plain", text, goal=1.03)
    return compare(interleave(arms, rounds=rounds, warm_up=1), ratio, batch=tokens)


def write_wet(path: Path, *, records: int) -> Path:
    """Write a WET file, a gzip member a record: 6 kB of short lines and paragraphs, words by Zipf's law."""
    random = np.random.default_rng(0)
    syllables = [first + then for first in "bdfglmnprstvw" for then in ("a", "e", "i", "o", "u", "er", "an")]
    lexicon = ["".join(random.choice(syllables, size=1 + number % 4)) for number in range(LEXICON)]
    share = 1.0 / np.arange(1, LEXICON + 1)
    with open(path, "wb") as file:
        for number in range(records):
            drawn = random.choice(LEXICON, size=CUTS[-1] * random.integers(2, 23), p=share / share.sum())
            block = "\n".join(_lines([lexicon[rank] for rank in drawn])).encode()
            header = (
                f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:{number}>\r\n"
                f"Content-Type: text/plain\r\nContent-Length: {len(block)}\r\n\r\n"
            )
            file.write(gzip.compress(header.encode() + block + b"\r\n\r\n", compresslevel=6, mtime=0))
    return path


def _lines(words: list[str]) -> Iterator[str]:
    for start in range(0, len(words), CUTS[-1]):
        parts = [" ".join(words[start + first : start + stop]) for first, stop in itertools.pairwise(CUTS)]
        yield from parts[:MENU]
        yield " ".join(part.capitalize() + "." for part in parts[MENU:])


def _reading(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    iterator = importlib.import_module("warcio.archiveiterator").ArchiveIterator
    file = write_wet(folder / "read.wet.gz", records=size.records)
    (source,) = find_text_sources([str(file)], base_url=BASE_URL)
    reading = RecordOptions("text", passage_words=0, main_content=False)

    def payloads() -> int:
        with open(file, "rb") as stream:
            pieces = unpack(stream, note=lambda *_: None)
            return sum(record.block != b"" for record in read_records(pieces, note=lambda *_: None))

    def lines() -> int:
        records = read_source(source, reading=reading, folder=folder, note=lambda *_: None, at=lambda _: None)
        return sum(raw.lines != [] for raw in records)

    def by_warcio() -> int:
        with open(file, "rb") as stream:
            return sum(record.content_stream().read() != b"" for record in iterator(stream))

    def run(_: int, *, read: Callable[[], int]) -> None:
        if (count := read()) != size.records:
            raise OdistError(f"{count} of {size.records} records were read")

    readers = {"warcio": by_warcio, "payloads": payloads, "lines": lines}
    timings = interleave(
        [Arm(name, partial(run, read=read), 1) for name, read in readers.items()], rounds=rounds, warm_up=1
    )
    rows, what = [], f"{size.records:,} records, {file.stat().st_size / 1e6:.0f} MB packed"
    for name, text, goal in (("payloads", "payloads by odist", 2.5), ("lines", "decoded lines by odist", None)):
        text = f"reading WET, payloads by warcio / {text}, {what}"
        ratio = Ratio(f"read_wet_{name}", "warcio", name, text, goal, at_least=goal is not None)
        rows.append(compare(timings, ratio, batch=size.records))
    return rows


class Encoding:
    """The preparation's encoding stage over one WET file, and sentencepiece alone over the same sentences.

    folder: of the stages before, which are done here; pieces: of the tokenizer, trained here
    """

    def __init__(self, folder: Path, file: Path, *, pieces: int) -> None:
        import sentencepiece

        (source,) = find_text_sources([str(file)], base_url=BASE_URL)
        self.piece = TextPiece(0, source, folder, TextOptions(language="any").resolve(None))
        clean_piece(self.piece, lambda *_: None)
        mark_duplicates(folder, num_pieces=1, poll=lambda: None)
        documents = kept_documents(self.piece, counts=EncodeCounts())
        self.sentences = [text for document in documents for paragraph in document.paragraphs for text in paragraph]
        model = folder / "benchmark.model"
        model.write_bytes(train_sentencepiece(self.sentences[:20_000], vocabulary=pieces))
        self.tokenizer = open_tokenizer(model)
        self.bare_model = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self.num_pieces = 0  # of the last bare pass

    def stage(self) -> None:
        """Encode and pack, as one process of `odist prepare text` does."""
        encode_piece(self.piece, lambda *_: None, tokenizer=self.tokenizer, threads=1)

    def bare(self) -> None:
        """Encode sentences that are in memory, and keep nothing."""
        batches = (self.sentences[start : start + BATCH] for start in range(0, len(self.sentences), BATCH))
        self.num_pieces = sum(len(ids) for batch in batches for ids in self.bare_model.encode(batch, num_threads=1))


def _encoding(folder: Path, size: Size, *, rounds: int) -> Row:
    file = write_wet(folder / "encoded.wet.gz", records=size.encoded)
    encoding = Encoding(folder, file, pieces=size.pieces)
    arms = [Arm("bare", lambda _: encoding.bare(), 1), Arm("stage", lambda _: encoding.stage(), 1)]
    timings = interleave(arms, rounds=rounds, warm_up=1)
    text = (
        "tokens/s of encode and pack (read, leave out duplicates, write) / of bare sentencepiece, "
        f"{encoding.num_pieces:,} tokens"
    )
    ratio = Ratio("encode", "bare", "stage", text, goal=0.85, at_least=True)
    return compare(timings, ratio, batch=encoding.num_pieces)
