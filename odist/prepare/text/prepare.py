"""Common Crawl and other text: raw files -> a memory-mapped token store (odist.data.tokens).

Four steps: read and clean every source (commoncrawl_parts.py), mark exact duplicates over all of them, train the
tokenizer on a sample of the training part, encode every source. The first and the last run in processes, one
source at a time each; work lies in `<output>.partial` until it is whole, and what is done of it is not done again.
The result does not depend on the number of processes, nor on interruptions.

Every choice the paper leaves open is an option (commoncrawl_options.py).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from odist.data.tokens import SPLITS, UNIGRAM, SplitWriter, TokenStore, store_record, token_dtype
from odist.errors import Interrupted, UserError
from odist.files import save_array
from odist.prepare.partial import Partial, finished_record
from odist.prepare.pool import default_processes, run_jobs
from odist.prepare.text.clean import draw
from odist.prepare.text.duplicates import mark_duplicates
from odist.prepare.text.options import TextOptions, TextReport, resolve
from odist.prepare.text.passes import (
    BORDER,
    EncodeCounts,
    Kept,
    PartJob,
    encode_part,
    kept_documents,
    read_part,
    save_border,
)
from odist.prepare.text.report import build_report, sum_counts
from odist.prepare.text.sources import FetchError, TextSource, find_text_sources
from odist.prepare.text.tokenizer import open_tokenizer, train_sentencepiece

__all__ = ["TextOptions", "TextReport", "prepare_commoncrawl"]

DUPLICATES_DONE = "duplicates.done"
FEW = 256  # documents of a part, of which duplicates or the draw may leave none

Progress = Callable[[str, int, int, int, int], None]  # step, done, in all (0: unknown), documents, tokens


def prepare_commoncrawl(
    inputs: list[str],
    *,
    output: Path,
    like: Path | None = None,
    options: TextOptions,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> TextReport:
    """Turn text into a token store; the same call continues an interrupted one, to the same bytes.

    inputs: see find_text_sources
    output: folder to make; done already by the same request: nothing happens and the report says so
    like: a token store whose tokenizer and unigram counts are used; then every document is a validation document,
        unless options.validation_fraction is given
    progress: called with (step, bytes or documents done, in all, documents, tokens)
    stop: polled; once true, what is done is kept and Interrupted raised
    Raises UserError for wrong input, with nothing left behind (but after a failed download), and Interrupted.
    """
    began = time.monotonic()
    other = None if like is None else TokenStore.open(like)
    chosen = resolve(options, other)
    sources = find_text_sources(inputs, base_url=options.base_url)
    request: dict[str, Any] = {"task": "lm", "options": chosen}
    request["like"] = None if other is None else other.fitted_fingerprint
    given = None if options.tokenizer is None else open_tokenizer(options.tokenizer)
    request["tokenizer"] = None if given is None else given.record
    request["sources"] = [source.identity() for source in sources]
    output = output.expanduser().absolute()
    done = finished_record(output, request)
    if done is not None:
        return TextReport(**done["report"], reused=True)
    full_disk = ("The work takes about half the size of the text, and 2 or 4 bytes a token. Name an output on another "
                 "disk.")  # fmt: skip
    with Partial(output, request=request, full_disk=full_disk, resumable=(FetchError,)) as folder:
        if folder.complete:
            folder.publish()
            return TextReport(**TokenStore.open(output).meta["report"], reused=True)
        return _Preparation(folder, sources, options, chosen, other, progress=progress, stop=stop, began=began).run()


def _encode(job: PartJob, tell: Callable[[int, int, int], None], *, tokenizer: Path, threads: int) -> None:
    encode_part(job, tell, tokenizer=open_tokenizer(tokenizer), threads=threads)


def _border(draws: dict[str, list[float]]) -> float | None:
    # draws: least and largest of the documents of each split, nothing where there is none
    if all(draws.values()):
        return None
    if not any(draws.values()):
        raise UserError("no document is left of the input without what is repeated. Type --duplicates keep, or give more text.")  # fmt: skip
    least, most = draws["train"] or draws["validation"]
    if least == most:
        raise UserError("one document is left of the input (not counting repeated ones), which cannot be divided into a "
                        "training and a validation part. Give more text, or --validation-fraction 0.")  # fmt: skip
    return math.nextafter(least, 1) if draws["train"] else most


class _Preparation:
    """One call; everything that lasts is in the work folder."""

    def __init__(
        self,
        folder: Partial,
        sources: list[TextSource],
        options: TextOptions,
        chosen: dict[str, Any],
        other: TokenStore | None,
        *,
        progress: Progress | None,
        stop: Callable[[], bool] | None,
        began: float,
    ) -> None:
        self.folder, self.sources, self.options, self.chosen, self.other = folder, sources, options, chosen, other
        self.progress, self.stop, self.began = progress or (lambda *_: None), stop or (lambda: False), began
        self.work = folder.work
        self.processes = options.processes or default_processes()
        self.jobs = [PartJob(part, source, self.work, chosen) for part, source in enumerate(sources)]
        self.documents = self.tokens = 0  # of this call
        self.stages: dict[str, float] = {}

    def run(self) -> TextReport:
        """All steps; each finds by itself what of it is done."""
        self.folder.save({})
        self.work.mkdir(exist_ok=True)
        steps = {
            "read": self._read,
            "duplicates": self._duplicates,
            "split": self._split,
            "tokenizer": self._tokenizer,
            "encode": self._encode,
        }
        name = ""
        try:
            for name, step in steps.items():
                start = time.monotonic()
                step()
                self.stages[name] = round(time.monotonic() - start, 3)
            name = "join"
            return self._commit()
        except Interrupted:
            kept = sum(job.path("read.json").is_file() for job in self.jobs)
            raise Interrupted(
                f"in step {name}; {kept} of {len(self.jobs)} sources are read and kept in {self.folder.path}; "
                "the same command continues."
            ) from None

    def _poll(self) -> None:
        if self.stop():
            raise Interrupted("stopped")

    def _run(self, job: Any, pass_name: str, *, total: int, done: int, unit: int) -> None:
        # unit: which of (bytes, documents, tokens) the bar counts
        left = [item for item in self.jobs if not item.path(f"{pass_name}.json").is_file()]
        state = [done]

        def advance(*step: int) -> None:
            state[0] += step[unit]
            if pass_name == "encode":
                self.documents, self.tokens = self.documents + step[1], self.tokens + step[2]
                self.progress(pass_name, state[0], total, self.documents, self.tokens)
            else:
                read[0] += step[1]
                self.progress(pass_name, state[0], total, read[0], 0)

        read = [0]
        run_jobs(job, left, processes=self.processes, progress=advance, stop=self.stop)

    def _read(self) -> None:
        sizes = [source.bytes for source in self.sources]
        done = sum(job.source.bytes for job in self.jobs if job.path("read.json").is_file())
        self._run(read_part, "read", total=sum(sizes) if all(sizes) else 0, done=done, unit=0)
        counts = self._counts("read")
        if self.chosen["damaged"] == "refuse":
            for entry in counts:
                if entry["damage"]:
                    raise UserError(f"{entry['located'][0]}. --damaged keep counts such faults and keeps what is readable.")  # fmt: skip
        documents = sum_counts(entry["documents"] for entry in counts)
        if not documents:
            dropped = sum_counts(entry["dropped"] for entry in counts)
            why = ", ".join(f"{reason} {number:,}" for reason, number in dropped.most_common()) or "no record was found"
            raise UserError(f"no document is left of the input ({why}). Loosen the filters, or name other files.")

    def _duplicates(self) -> None:
        if not (self.work / DUPLICATES_DONE).is_file():
            mark_duplicates(self.work, parts=len(self.jobs), poll=self._poll)
            (self.work / DUPLICATES_DONE).touch()

    def _split(self) -> None:
        # A part that the draw left empty gets the document that was nearest to it, so that two documents are enough.
        share = self.chosen["validation_fraction"]
        if not share or (self.work / BORDER).is_file():
            return
        drawn = sum_counts(entry["documents"] for entry in self._counts("read"))
        border = None
        if min(drawn["train"], drawn["validation"]) < FEW:
            draws: dict[str, list[float]] = {split: [] for split in SPLITS}
            for kept in self._kept():
                value = draw(kept.key, seed=self.chosen["split_seed"])
                found = draws[kept.split]
                found[:] = [min([value, *found]), max([value, *found])]
            border = _border(draws)
        save_border(self.work, border)

    def _kept(self) -> Iterator[Kept]:
        for job in self.jobs:
            for number, kept in enumerate(kept_documents(job, counts=EncodeCounts())):
                if number % 256 == 0:
                    self._poll()
                yield kept

    def _tokenizer(self) -> None:
        if self._tokenizer_file() is not None:
            return
        if self.other is not None:
            tokenizer = open_tokenizer(self.other.path / self.other.meta["tokenizer"]["file"])
        elif self.options.tokenizer is not None:
            tokenizer = open_tokenizer(self.options.tokenizer)
        else:
            self.progress("tokenizer", 0, 0, 0, 0)
            data = train_sentencepiece(self._sample(), vocabulary=self.chosen["vocabulary"])
            (self.work / "trained.model").write_bytes(data)
            tokenizer = open_tokenizer(self.work / "trained.model")
        target = self.folder.path / tokenizer.file
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_bytes(tokenizer.data)
        temporary.replace(target)

    def _tokenizer_file(self) -> Path | None:
        found = [path for path in (self.folder.path / "tokenizer.model", self.folder.path / "vocab.txt") if path.is_file()]  # fmt: skip
        return found[0] if found else None

    def _sample(self) -> Iterator[str]:
        # Sentences of the training part: whole documents, drawn by their own text, so that order and number of
        # sources change nothing but which documents there are.
        total = sum(entry["sentences"] for entry in self._counts("read"))
        share = self.chosen["tokenizer_sentences"] / max(1, total)  # none where a document was moved to the part
        for kept in self._kept():
            if kept.split == "train" and (share >= 1 or draw(kept.key, seed=0, purpose="tokenizer") < share):
                for paragraph in kept.paragraphs:
                    yield from paragraph

    def _encode(self) -> None:
        file = self._tokenizer_file()
        assert file is not None
        documents = [sum(entry["documents"].values()) for entry in self._counts("read")]
        done = sum(n for n, job in zip(documents, self.jobs, strict=True) if job.path("encode.json").is_file())
        threads = max(1, self.processes // len(self.jobs))
        encode = partial(_encode, tokenizer=file, threads=threads)
        self._run(encode, "encode", total=sum(documents), done=done, unit=1)

    def _counts(self, pass_name: str) -> list[dict[str, Any]]:
        return [json.loads(job.path(f"{pass_name}.json").read_text(encoding="utf-8")) for job in self.jobs]

    def _commit(self) -> TextReport:
        start, folder, file = time.monotonic(), self.folder.path, self._tokenizer_file()
        assert file is not None
        tokenizer = open_tokenizer(file)
        encoded = self._counts("encode")
        empty = [split for split in SPLITS if not any(entry["documents"].get(split) for entry in encoded)]
        if empty and self.chosen["validation_fraction"]:
            raise UserError(f"nothing is left of the {empty[0]} part: all of it is repeated elsewhere. Give another "
                            "--split-seed or --validation-fraction, or --duplicates keep.")  # fmt: skip
        splits = {split: self._join(split, tokenizer.vocabulary, encoded) for split in SPLITS}
        if self.other is not None:
            unigram = self.other.unigram_counts()
        else:
            unigram = np.zeros(tokenizer.vocabulary, dtype=np.int64)
            for job in self.jobs:
                unigram += np.load(job.path("unigram.npy"), allow_pickle=False)
        save_array(folder / UNIGRAM, unigram)
        record = store_record(
            vocabulary=tokenizer.vocabulary,
            special=tokenizer.special,
            splits=splits,
            unigram=unigram,
            tokenizer=tokenizer.record,
            options=self.chosen,
        )
        report = build_report(self.jobs, record, read=self._counts("read"), encoded=encoded, folder=folder)
        kept = {key: value for key, value in asdict(report).items() if key not in (
            "seconds", "reused", "stages", "documents_per_second", "tokens_per_second")}  # fmt: skip
        self.stages["join"] = round(time.monotonic() - start, 3)
        self.folder.commit({**record, "report": kept})
        report.stages, report.seconds = self.stages, round(time.monotonic() - self.began, 3)
        report.documents_per_second = round(self.documents / report.seconds, 1)
        report.tokens_per_second = round(self.tokens / report.seconds, 1)
        return report

    def _join(self, split: str, vocabulary: int, encoded: list[dict[str, Any]]) -> dict[str, Any]:
        with SplitWriter(self.folder.path, split=split, vocabulary=vocabulary) as writer:
            for job, counts in zip(self.jobs, encoded, strict=True):
                lengths, path = np.load(job.path(f"{split}.lengths.npy"), allow_pickle=False), job.path(f"{split}.bin")
                if len(lengths):
                    ids = np.memmap(path, dtype=token_dtype(vocabulary), mode="r")
                    writer.append(ids, lengths=lengths, num_bytes=counts["bytes"][split])
                self._poll()
            return writer.finish()
