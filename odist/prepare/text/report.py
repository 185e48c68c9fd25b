"""The report of a text preparation, out of the counts of its pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from odist.prepare.text.options import TextReport
from odist.prepare.text.passes import EncodeCounts, ReadCounts
from odist.prepare.text.sources import TextSource


def build_report(
    sources: list[TextSource],
    record: dict[str, Any],
    *,
    read: list[ReadCounts],
    encoded: list[EncodeCounts],
    store_bytes: int,
) -> TextReport:
    """Return the report of a finished preparation.

    record: what store_record gave
    read, encoded: counts of each source
    """
    dropped = sum_counts(entry.dropped for entry in read)
    paragraphs = sum_counts(entry.paragraphs.dropped for entry in read)
    duplicates = sum(entry.duplicates for entry in encoded)
    repeated = sum(entry.duplicate_paragraphs for entry in encoded)
    for counter, number in ((dropped, duplicates), (paragraphs, repeated)):
        if number:
            counter["duplicate"] = number
    splits = record["splits"]
    return TextReport(
        records=sum(entry.records for entry in read),
        kept=sum(entry["documents"] for entry in splits.values()),
        dropped=dict(dropped.most_common()),
        documents={split: entry["documents"] for split, entry in splits.items()},
        tokens={split: entry["tokens"] for split, entry in splits.items()},
        text_bytes={split: entry["bytes"] for split, entry in splits.items()},
        unknown_tokens=sum(entry.unknown for entry in encoded),
        paragraphs=sum(entry.paragraphs.seen for entry in read),
        dropped_paragraphs=dict(paragraphs.most_common()),
        damage=dict(sum_counts(entry.damage for entry in read).most_common()),
        damage_located=[place for entry in read for place in entry.located],
        vocabulary=record["vocabulary"],
        special=record["special"],
        input_bytes=sum(source.bytes for source in sources),
        store_bytes=store_bytes,
        sources=[_source(*entry) for entry in zip(sources, read, encoded, strict=True)],
        fingerprint=record["fingerprint"],
        fitted_fingerprint=record["fitted_fingerprint"],
    )


def _source(source: TextSource, read: ReadCounts, encoded: EncodeCounts) -> dict[str, Any]:
    return {
        **source.identity(),
        "records": read.records,
        "kept": sum(encoded.documents.values()),
        "dropped": {**read.dropped, **({"duplicate": encoded.duplicates} if encoded.duplicates else {})},
        "damage": dict(read.damage),
    }


def sum_counts(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Add counts up by key."""
    total: Counter[str] = Counter()
    for entry in counts:
        total.update(entry)
    return total
