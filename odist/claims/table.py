"""Numbers with their intervals as text, and tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"


def decimals_for(interval: Sequence[float] | None, value: float) -> int:
    """Digits after the point: two significant ones of the interval's half width, else five of the value."""
    if interval is not None and interval[1] > interval[0]:
        magnitude, digits = math.floor(math.log10((interval[1] - interval[0]) / 2)), 2
    else:
        magnitude, digits = math.floor(math.log10(abs(value))) if value else 0, 5
    return max(0, min(8, digits - 1 - magnitude))


def estimate(value: float | None, interval: Sequence[float] | None = None, *, sign: bool = False) -> str:
    """`0.4480 [0.4470, 0.4490]`; `–` for nothing; the value alone without an interval."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(value)
    places, plus = decimals_for(interval, value), "+" if sign else ""
    text = f"{value:{plus}.{places}f}"
    if interval is None:
        return text
    return f"{text} [{interval[0]:{plus}.{places}f}, {interval[1]:{plus}.{places}f}]"


def count(value: float | None) -> str:
    """A count in full with spaces between thousands; powers of ten from 10^9 on, three digits below 100."""
    if value is None:
        return ABSENT
    return f"{value:.3g}" if value >= 1e9 or value < 100 else f"{round(value):,}".replace(",", " ")


def probability(p: float) -> str:
    """A p-value with two significant digits, never as zero."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def markdown_table(columns: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table. columns: key -> heading; rows: key -> text, `–` where missing."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    body = [line([row.get(key, ABSENT) for key in columns]) for row in rows]
    return "\n".join([line(list(columns.values())), "|" + " --- |" * len(columns), *body]) + "\n"


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with the union of the rows' keys as columns, in order of first appearance; floats in full."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()
