"""The page of all reports: every row of the paper beside what was found here, from the committed records alone.

reports/index.html   made by `odist index`, self-contained; the same table stands in README.md between two markers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from odist.claims.claim import FAILS, HOLDS, OPEN, UNTESTED
from odist.claims.effects import Effect, effect_of, names_in
from odist.claims.judged import Judged, read_judged
from odist.claims.paper_rows import ClaimPlace, PaperRow, PaperRows, Regime, place_of, read_paper_rows
from odist.claims.table import ABSENT, markdown_table, probability
from odist.claims.verdicts import Verdict
from odist.errors import UserError
from odist.files import write_atomically

FILE = "index.html"
NOT_RUN = "not run"
MARKERS = ("<!-- the paper's rows: made by odist index -->", "<!-- end of the paper's rows -->")
STATES = {HOLDS: "reached", FAILS: "not reached", OPEN: "not resolved", UNTESTED: "not resolved"}


@dataclass(frozen=True)
class Answer:
    """A claim with its page. verdict, effect: None where it was not run or nothing was compared"""

    place: ClaimPlace
    verdict: Verdict | None
    effect: Effect | None

    @property
    def name(self) -> str:
        return f"{self.place.page}{':' if self.place.variant else ''}{self.place.variant}/{self.place.claim}"

    @property
    def words(self) -> str:
        return NOT_RUN if self.verdict is None else self.verdict.verdict

    @property
    def numbers(self) -> str:
        return ABSENT if self.effect is None else self.effect.text

    @property
    def p(self) -> str:
        return "" if self.verdict is None or self.verdict.adjusted is None else probability(self.verdict.adjusted)


@dataclass(frozen=True)
class Row:
    """A row of the paper, answered. state: of its regime"""

    row: PaperRow
    answers: list[Answer]
    regime: Regime | None
    state: str
    command: str


@dataclass(frozen=True)
class Index:
    """Everything on the page. pages: name -> the judged records; shared: sentences on runs that several pages read"""

    rows: list[Row]
    pages: dict[str, Judged]
    shared: list[str]
    paper: PaperRows

    def answers(self) -> list[Answer]:
        """Every claim of every page, by page and variant."""
        return [
            answer(self.pages, ClaimPlace(name, variant, verdict.claim.id))
            for name, judged in self.pages.items()
            for variant, verdicts in judged.verdicts.items()
            if any(record.variant == variant for record in judged.records)
            for verdict in verdicts
        ]


def read_index(reports: Path, *, echo: Callable[[str], None] = print) -> Index:
    """Read and judge every report of a folder that is at its recipe's own scale. UserError where there is none."""
    pages = {
        path.parent.name: read_judged(path.parent, name=path.parent.name, echo=echo)
        for path in sorted(reports.glob("*/recipe.yaml"))
        if path.parent.name.rpartition("-")[2] not in ("smoke", "small", "medium", "paper")
    }
    if not pages:
        raise UserError(f"{reports}: no reports of recipes. `odist reproduce NAME --output {reports}` makes one.")
    paper = read_paper_rows()
    rows = []
    for row in paper.rows:
        answers = [answer(pages, place_of(text)) for text in row.claims]
        regime = paper.regimes[row.regime] if row.regime else None
        made = dict.fromkeys(pages[one.place.page].command for one in answers if one.place.page in pages)
        rows.append(Row(row, answers, regime, _state(pages, regime), row.command or "; ".join(made)))
    return Index(rows, pages, _shared(pages), paper)


def answer(pages: dict[str, Judged], place: ClaimPlace) -> Answer:
    judged = pages.get(place.page)
    found = [
        verdict
        for verdict in (judged.verdicts.get(place.variant, []) if judged else [])
        if verdict.claim.id == place.claim
    ]
    if judged is None or not found or not any(record.variant == place.variant for record in judged.records):
        return Answer(place, None, None)
    sides = [judged.retrains.get((place.variant, name)) for name in names_in(found[0].claim)]
    return Answer(place, found[0], effect_of(found[0], sides=sides))


def _state(pages: dict[str, Judged], regime: Regime | None) -> str:
    if regime is None or regime.claim is None:
        return ABSENT if regime is None else regime.state
    verdict = answer(pages, place_of(regime.claim)).verdict
    return NOT_RUN if verdict is None else STATES[verdict.verdict]


def _shared(pages: dict[str, Judged]) -> list[str]:
    """Sentences on the pages whose runs are the same, by the weights that they ended with."""
    homes: dict[str, list[str]] = {}
    for name, judged in pages.items():
        homes.setdefault(judged.recipe.home, []).append(name)
    sentences = [
        f"{', '.join(names)} read the runs of {home}: their verdicts are no independent evidence."
        for home, names in homes.items()
        if len(names) > 1
    ]
    weights = {home: _weights(pages[names[0]] if home not in pages else pages[home]) for home, names in homes.items()}
    for first, second in combinations(weights, 2):
        if same := len(weights[first] & weights[second]):
            sentences.append(f"{first} and {second} have {same} runs in common, which count once.")
    return sentences


def _weights(judged: Judged) -> set[tuple[str, ...]]:
    hashes = [tuple(str((group or {}).get("weight_hash")) for group in record.groups) for record in judged.records]
    return {one for one in hashes if one and "None" not in one}


def markdown(index: Index, *, reports: str) -> str:
    """The paper's rows as a Markdown table. reports: path of the folder of reports, for links"""
    columns = {"id": "row", "system": "the paper's system", "paper": "the paper"}
    columns |= {name: name for name in ("claim", "here", "verdict", "regime")}
    rows = []
    for row in index.rows:
        links = [
            f"[{one.place.claim}]({reports}/{one.place.page}/{one.place.page}.md)" if one.verdict else one.place.claim
            for one in row.answers
        ]
        cells = {
            "id": row.row.id,
            "system": f"{row.row.task}: {row.row.system}",
            "paper": row.row.paper,
            "regime": row.state,
        }
        cells["claim"] = "<br>".join(links) or ABSENT
        cells["here"] = "<br>".join(one.numbers for one in row.answers) or ABSENT
        cells["verdict"] = "<br>".join(one.words for one in row.answers) or NOT_RUN
        rows.append(cells)
    return markdown_table(columns, rows)


def with_table(text: str, table: str) -> str:
    """A text with what stands between the two markers replaced. UserError without the markers."""
    first, last = (text.find(marker) for marker in MARKERS)
    if not 0 <= first < last:
        raise UserError(f"no place for the table: expected the lines {MARKERS[0]!r} and {MARKERS[1]!r}, in this order.")
    return f"{text[: first + len(MARKERS[0])]}\n\n{table}\n{text[last:]}"


def build_index(reports: Path, *, readme: Path | None = None, echo: Callable[[str], None] = print) -> list[Path]:
    """Write the page of all reports, and the table into a README; the paths written.

    readme: a file with the two markers; None: the page alone
    """
    from odist.claims.index_page import html

    index = read_index(reports, echo=echo)
    written = [reports / FILE]
    write_atomically(reports / FILE, html(index))
    if readme is not None:
        write_atomically(readme, with_table(readme.read_text(encoding="utf-8"), markdown(index, reports=reports.name)))
        written.append(readme)
    return written


def decided(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many claims have each verdict."""
    return {words: sum(one.verdict == words for one in verdicts) for words in (HOLDS, FAILS, OPEN, UNTESTED)}
