"""Criteo display advertising rows: raw files -> a memory-mapped store (odist.data.rows).

A packed row is described in kernels.py. Reading streams: a thread unpacks, threads parse, rows are appended in order;
then whatever is fitted is fitted on the training part. Memory is a few blocks of the input and a few chunks of rows,
whatever their number. Every choice the paper leaves open is an option.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from odist.errors import UserError
from odist.prepare.criteo.fit import (
    NUM_COLUMNS,
    RowRange,
    fit_numeric,
    fit_rare,
    load_rare,
    save_rare,
    seal_rows,
)
from odist.prepare.criteo.input import FEATURES, find_row_layout
from odist.prepare.criteo.options import MEANING, CriteoOptions, CriteoReport
from odist.prepare.criteo.read import CriteoState, RowReader, num_threads
from odist.prepare.inputs import find_files
from odist.prepare.job import ShowProgress, Stop
from odist.prepare.rows import RowPreparation

__all__ = ["CriteoOptions", "CriteoReport", "prepare_criteo"]


def prepare_criteo(
    inputs: list[str],
    *,
    output: Path,
    like: Path | None = None,
    options: CriteoOptions,
    progress: ShowProgress | None = None,
    stop: Stop | None = None,
) -> CriteoReport:
    """Turn raw Criteo rows into a store; the same call continues an interrupted one, to the same bytes.

    inputs: files, patterns, folders of Parquet files, in order of time; plain or gzip, all labelled or all not
    output: folder to make; done already by the same request: nothing happens and the report says so
    like: a prepared store whose fitted parts and meaning of ids are used; then every row is a validation
        row and the training part is empty, unless options.validation_fraction is given
    progress: told the input bytes done and in all, and the rows so far
    stop: polled; once true, the state is saved and Interrupted raised
    Raises UserError for wrong input, with nothing left behind, and Interrupted.
    """
    return CriteoPreparation(inputs, like=like, options=options, progress=progress, stop=stop).run(output)


class CriteoPreparation(RowPreparation[CriteoOptions, CriteoReport, CriteoState]):
    """One call: reading, fitting, sealing, with `state` as the only thing that changes."""

    full_disk = "A row takes 160 bytes. Make room, or name an output on another disk."
    report_type = CriteoReport

    def find(self, inputs: list[str], like: Path | None) -> None:
        self.other = self.open_like(like)
        self.choices = self.options.resolve(self.other)
        self.threads = num_threads(self.options)
        self.sources = find_files(inputs)
        self.labelled = False  # known once the files are read
        self.state = self._nothing_read()

    def request(self) -> dict[str, Any]:
        return {
            "task": "criteo",
            "options": asdict(self.choices),
            "like": None if self.other is None else self.other.fitted_fingerprint,
            "sources": [source.identity() for source in self.sources],
        }

    def _nothing_read(self, border: int | None = None) -> CriteoState:
        files = ("train.npy", "validation.npy") if self.choices.split == "random" else ("rows.npy",)
        return CriteoState(written=dict.fromkeys(files, 0), source_rows=[0] * len(self.sources), border=border)

    def steps(self) -> dict[str, Callable[[], None]]:
        return {"read": self._read, "fit": self._fit}

    def _read(self) -> None:
        layouts = [find_row_layout(source, format_name=self.choices.format) for source in self.sources]
        self.labelled = layouts[0].labelled
        for source, layout in zip(self.sources, layouts, strict=True):
            if layout.labelled != self.labelled:
                with_label, without = (source, self.sources[0]) if layout.labelled else (self.sources[0], source)
                raise UserError(
                    f"{with_label.path} has labels, {without.path} has none. Prepare them apart, the second with "
                    "--like."
                )
        while self.state.fitted is None:
            RowReader(
                self.folder,
                self.sources,
                layouts,
                options=self.options,
                choices=self.choices,
                state=self.state,
                progress=self.progress,
                stop=self.stop,
                save=self.save,
            ).run()
            border = self._moved_border()
            if border is None:
                break
            self.state = self._nothing_read(border)
            self.save()

    def _moved_border(self) -> int | None:
        # A drawn split of few rows may leave a part empty: the row that was nearest to it goes there, by reading again.
        written, rows, seed = self.state.written, self.state.rows, self.choices.split_seed
        if self.choices.split != "random" or not self.choices.validation_fraction or rows < 2 or all(written.values()):
            return None
        from odist.prepare.criteo.kernels import extreme_draws

        least, most = extreme_draws(rows, seed)
        return int(least) + 1 if written["validation.npy"] == 0 else int(most)

    def _ranges(self) -> dict[str, RowRange]:
        total, written, share = self.state.rows, self.state.written, self.choices.validation_fraction
        if total == 0:
            raise UserError(f"no row of the input could be used; the first: {self.state.bad_locations[0]}.")
        if share is None:
            return {"train": RowRange("rows.npy", 0, 0), "validation": RowRange("rows.npy", 0, total)}
        if total == 1 and share > 0:
            raise UserError(
                "one row cannot be divided into a training and a validation part. Give more rows, or "
                "--validation-fraction 0, or --like STORE for validation alone."
            )
        if self.choices.split == "random":
            return {split: RowRange(f"{split}.npy", 0, written[f"{split}.npy"]) for split in ("train", "validation")}
        border = total - round(total * share)
        if share > 0:
            border = min(max(border, 1), total - 1)  # a row at least in each part
        return {"train": RowRange("rows.npy", 0, border), "validation": RowRange("rows.npy", border, total)}

    def _fit(self) -> None:
        train = self._ranges()["train"]
        if self.state.fitted is None:
            self.state.fitted = self._fitted(train)
            self.save()

    def _fitted(self, train: RowRange) -> dict[str, Any]:
        from odist.prepare.criteo.kernels import HASH

        folder, buckets, min_count = self.folder, self.choices.buckets, self.choices.min_count
        if self.other is not None:
            fitted = self.other.fitted
            if fitted["rare"] is not None:
                save_rare(folder, load_rare(self.other.path, fitted["rare"], buckets=buckets))
            return fitted
        mean, deviation = fit_numeric(folder, train, threads=self.threads, poll=self.poll)
        rare = None
        if min_count:
            rare = save_rare(folder, fit_rare(folder, train, buckets=buckets, min_count=min_count, poll=self.poll))
        return {
            "hash": HASH,
            "buckets": buckets,
            "min_count": min_count,
            "rare": rare,
            "numeric": "sign(x) log1p(|x|)",
            "numeric_mean": mean,
            "numeric_std": deviation,
        }

    def finish(self) -> tuple[dict[str, Any], CriteoReport]:
        state, fitted = self.state, self.state.fitted
        assert fitted is not None
        rare = None if fitted["rare"] is None else load_rare(self.folder, fitted["rare"], buckets=self.choices.buckets)
        ranges = self._ranges()
        digests = {
            split: seal_rows(self.folder, rows, rare=rare, threads=self.threads, poll=self.poll)
            for split, rows in ranges.items()
        }
        rows = {split: part.rows for split, part in ranges.items()}
        report = CriteoReport(
            rows=rows,
            click_rate=state.clicks / state.rows if self.labelled else None,
            missing=dict(zip(FEATURES, state.missing, strict=True)),
            **self.what_was_read(self.sources),
            **self.fingerprints(MEANING, {"rows": rows, "digests": digests}),
        )
        splits = {split: asdict(part) for split, part in ranges.items()}
        return self.record(report, columns=NUM_COLUMNS, splits=splits), report
