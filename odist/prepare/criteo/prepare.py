"""Criteo display advertising rows: raw files -> a memory-mapped store (odist.data.rows).

A packed row is described in criteo_kernels.py. Reading streams: a thread unpacks, threads parse, rows are
appended in order; then whatever is fitted is fitted on the training part. Memory is a few blocks of the
input and a few chunks of rows, whatever their number. Work lies in `<output>.partial` until it is whole.

Every choice the paper leaves open is an option (criteo_options.py).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from odist.data.rows import FORMAT, RowStore
from odist.errors import Interrupted, UserError
from odist.prepare.criteo.fit import NUM_COLUMNS, Split, fingerprint, fit_numeric, fit_rare, load_rare, save_rare, seal
from odist.prepare.criteo.input import FEATURES, find_layout
from odist.prepare.criteo.options import MEANING, SPLITTING, CriteoOptions, PrepareReport, resolve
from odist.prepare.criteo.read import Reading, State, num_threads
from odist.prepare.inputs import Source, find_sources
from odist.prepare.partial import Partial, finished_record

__all__ = ["CriteoOptions", "PrepareReport", "prepare_criteo"]


def prepare_criteo(
    inputs: list[str],
    *,
    output: Path,
    like: Path | None = None,
    options: CriteoOptions,
    progress: Callable[[int, int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> PrepareReport:
    """Turn raw Criteo rows into a store; the same call continues an interrupted one, to the same bytes.

    inputs: files, patterns, folders of Parquet files, in order of time; plain or gzip, all labelled or all not
    output: folder to make; done already by the same request: nothing happens and the report says so
    like: a prepared store whose fitted parts and meaning of ids are used; then every row is a validation
        row and the training part is empty, unless options.validation_fraction is given
    progress: called with (input bytes done, input bytes in all, rows so far)
    stop: polled; once true, the state is saved and Interrupted raised
    Raises UserError for wrong input, with nothing left behind, and Interrupted.
    """
    began = time.monotonic()
    if importlib.util.find_spec("numba") is None:
        raise UserError("the Criteo preparation needs numba, which is not installed. Type: pip install numba")
    other = None if like is None else RowStore.open(like)
    chosen = resolve(options, other)
    sources = find_sources(inputs)
    request: dict[str, Any] = {"task": "criteo", "options": chosen}
    request["like"] = None if other is None else other.fitted_fingerprint
    request["sources"] = [source.identity() for source in sources]
    output = output.expanduser().absolute()
    done = finished_record(output, request)
    if done is not None:
        return PrepareReport(**done["report"], reused=True)
    full_disk = "A row takes 160 bytes. Make room, or name an output on another disk."
    with Partial(output, request=request, full_disk=full_disk) as partial:
        if partial.complete:
            partial.publish()
            return PrepareReport(**RowStore.open(output).meta["report"], reused=True)
        return _Preparation(partial, sources, options, chosen, other, progress=progress, stop=stop, began=began).run()


class _Preparation:
    """One call: reading, fitting, committing, with `state` as the only thing that changes."""

    def __init__(
        self,
        partial: Partial,
        sources: list[Source],
        options: CriteoOptions,
        chosen: dict[str, Any],
        other: RowStore | None,
        *,
        progress: Callable[[int, int, int], None] | None,
        stop: Callable[[], bool] | None,
        began: float,
    ) -> None:
        self.partial, self.sources, self.options, self.chosen, self.other = partial, sources, options, chosen, other
        self.progress, self.stop = progress, stop or (lambda: False)
        self.threads = num_threads(options)
        files = ("train.npy", "validation.npy") if chosen["split"] == "random" else ("rows.npy",)
        self.state = State(written=dict.fromkeys(files, 0), source_rows=[0] * len(sources))
        if partial.journal is not None:
            self.state = State(**partial.journal)
        self.began = began - self.state.seconds
        self.total_bytes = sum(source.bytes for source in sources)

    def run(self) -> PrepareReport:
        layouts = [find_layout(source, format_name=self.chosen["format"]) for source in self.sources]
        for source, layout in zip(self.sources, layouts, strict=True):
            if layout.labelled != layouts[0].labelled:
                with_label, without = (source, self.sources[0]) if layout.labelled else (self.sources[0], source)
                raise UserError(
                    f"{with_label.path} has labels, {without.path} has none. Prepare them apart, the second with --like."
                )
        if self.state.fitted is None:
            self.partial.save(asdict(self.state))
            reading = Reading(
                self.partial.path,
                self.sources,
                layouts,
                options=self.options,
                chosen=self.chosen,
                state=self.state,
                progress=self.progress,
                stop=self.stop,
                save=self._save,
            )
            if not reading.run():
                raise self._interrupted()
            if self._move_border():
                return self.run()
        splits = self._splits()
        if self.state.fitted is None:
            self.state.fitted = self._fit(splits["train"])
            self._save()
        return self._commit(splits, labelled=layouts[0].labelled)

    def _poll(self) -> None:
        if self.stop():
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"after {self.state.rows:,} rows, kept in {self.partial.path}; the same command continues.")

    def _save(self) -> None:
        self.state.seconds = time.monotonic() - self.began
        self.partial.save(asdict(self.state))

    def _splits(self) -> dict[str, Split]:
        total, written, share = self.state.rows, self.state.written, self.chosen["validation_fraction"]
        if total == 0:
            raise UserError(f"no row of the input could be used; the first: {self.state.bad_locations[0]}.")
        if share is None:
            return {"train": Split("rows.npy", 0, 0), "validation": Split("rows.npy", 0, total)}
        if total == 1 and share > 0:
            raise UserError("one row cannot be divided into a training and a validation part. Give more rows, or "
                            "--validation-fraction 0, or --like STORE for validation alone.")  # fmt: skip
        if self.chosen["split"] == "random":
            return {part: Split(f"{part}.npy", 0, written[f"{part}.npy"]) for part in ("train", "validation")}
        border = total - round(total * share)
        if share > 0:
            border = min(max(border, 1), total - 1)  # a row at least in each part
        return {"train": Split("rows.npy", 0, border), "validation": Split("rows.npy", border, total)}

    def _move_border(self) -> bool:
        # A drawn split of few rows may leave a part empty: the row that was nearest to it goes there, by reading again.
        state, rows = self.state, self.state.rows
        if self.chosen["split"] != "random" or not self.chosen["validation_fraction"] or rows < 2:
            return False
        if all(state.written.values()):
            return False
        from odist.prepare.criteo.kernels import extreme_draws

        least, most = extreme_draws(rows, self.chosen["split_seed"])
        border = int(least) + 1 if state.written["validation.npy"] == 0 else int(most)
        self.state = State(written=dict.fromkeys(state.written, 0), source_rows=[0] * len(self.sources), border=border)
        self._save()
        return True

    def _fit(self, train: Split) -> dict[str, Any]:
        from odist.prepare.criteo.kernels import HASH

        folder, buckets, min_count = self.partial.path, self.chosen["buckets"], self.chosen["min_count"]
        if self.other is not None:
            fitted = self.other.fitted
            if fitted["rare"] is not None:
                save_rare(folder, load_rare(self.other.path, fitted["rare"], buckets=buckets))
            return fitted
        mean, deviation = fit_numeric(folder, train, threads=self.threads, poll=self._poll)
        rare = None
        if min_count:
            rare = save_rare(folder, fit_rare(folder, train, buckets=buckets, min_count=min_count, poll=self._poll))
        return {"hash": HASH, "buckets": buckets, "min_count": min_count, "rare": rare, "numeric": "sign(x) log1p(|x|)",
                "numeric_mean": mean, "numeric_std": deviation}  # fmt: skip

    def _commit(self, splits: dict[str, Split], *, labelled: bool) -> PrepareReport:
        state, fitted, folder = self.state, self.state.fitted, self.partial.path
        assert fitted is not None
        rare = None if fitted["rare"] is None else load_rare(folder, fitted["rare"], buckets=self.chosen["buckets"])
        digests = {
            part: seal(folder, split, rare=rare, threads=self.threads, poll=self._poll)
            for part, split in splits.items()
        }
        fitted_fingerprint = fingerprint(fitted)
        meaning = {key: self.chosen[key] for key in (*MEANING, *SPLITTING)}
        if meaning["split"] != "random":
            meaning["split_seed"] = None  # has no effect
        shape = {part: split.rows for part, split in splits.items()}
        content = {
            "format": FORMAT,
            "task": "criteo",
            "rows": shape,
            "digests": digests,
            "options": meaning,
            "fitted": fitted,
        }
        sources = [{**s.identity(), "rows": n} for s, n in zip(self.sources, state.source_rows, strict=True)]
        report = PrepareReport(
            rows=shape,
            bad_rows=state.bad,
            bad_locations=state.bad_locations,
            click_rate=state.clicks / state.rows if labelled else None,
            missing=dict(zip(FEATURES, state.missing, strict=True)),
            input_bytes=self.total_bytes,
            store_bytes=sum(path.stat().st_size for path in folder.glob("*.npy")),
            sources=sources,
            fingerprint=fingerprint(content),
            fitted_fingerprint=fitted_fingerprint,
        )
        kept = {key: value for key, value in asdict(report).items() if key not in ("seconds", "reused")}
        self.partial.commit(
            {
                "format": FORMAT,
                "task": "criteo",
                "fingerprint": report.fingerprint,
                "fitted_fingerprint": fitted_fingerprint,
                "columns": NUM_COLUMNS,
                "splits": {part: asdict(split) for part, split in splits.items()},
                "fitted": fitted,
                "options": self.chosen,
                "report": kept,
            }
        )
        report.seconds = time.monotonic() - self.began
        return report
