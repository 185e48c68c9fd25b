"""The report of a text preparation, out of the counts of its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from odist.prepare.text.options import TextReport
from odist.prepare.text.passes import PartJob


def build_report(
    jobs: list[PartJob],
    record: dict[str, Any],
    *,
    read: list[dict[str, Any]],
    encoded: list[dict[str, Any]],
    folder: Path,
) -> TextReport:
    """The report of a finished preparation.

    record: what store_record gave
    read, encoded: counts of each part, as read_part and encode_part wrote them
    folder: where the store's files lie
    """
    dropped = sum_counts(entry["dropped"] for entry in read)
    duplicates = sum(entry["duplicates"] for entry in encoded)
    paragraphs = sum_counts(entry["paragraphs"]["dropped"] for entry in read)
    for counter, number in ((dropped, duplicates), (paragraphs, sum(e["duplicate_paragraphs"] for e in encoded))):
        if number:
            counter["duplicate"] = number
    sources = [
        {
            **job.source.identity(),
            "records": first["records"],
            "kept": sum(second["documents"].values()),
            "dropped": first["dropped"] | ({"duplicate": second["duplicates"]} if second["duplicates"] else {}),
            "damage": first["damage"],
        }
        for job, first, second in zip(jobs, read, encoded, strict=True)
    ]
    splits = record["splits"]
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(("journal", "."))]  # fmt: skip
    return TextReport(
        records=sum(entry["records"] for entry in read),
        kept=sum(entry["documents"] for entry in splits.values()),
        dropped=dict(dropped.most_common()),
        documents={split: entry["documents"] for split, entry in splits.items()},
        tokens={split: entry["tokens"] for split, entry in splits.items()},
        text_bytes={split: entry["bytes"] for split, entry in splits.items()},
        unknown_tokens=sum(entry["unknown"] for entry in encoded),
        paragraphs=sum(entry["paragraphs"]["seen"] for entry in read),
        dropped_paragraphs=dict(paragraphs.most_common()),
        damage=dict(sum_counts(entry["damage"] for entry in read).most_common()),
        damage_located=[place for entry in read for place in entry["located"]],
        vocabulary=record["vocabulary"],
        special=record["special"],
        input_bytes=sum(job.source.bytes for job in jobs),
        store_bytes=sum(path.stat().st_size for path in files),
        sources=sources,
        fingerprint=record["fingerprint"],
        fitted_fingerprint=record["fitted_fingerprint"],
    )


def sum_counts(counts: Iterable[dict[str, int]]) -> Counter[str]:
    """Counts added up by key."""
    total: Counter[str] = Counter()
    for entry in counts:
        total.update(entry)
    return total
