"""The page of all reports as one HTML file: no script, no other file, readable on paper, on a phone and in the dark."""

from __future__ import annotations

from html import escape

from odist.claims.claim import FAILS, HOLDS, OPEN, UNTESTED
from odist.claims.index import Answer, Index, Row, decided
from odist.claims.index_figures import churn_figure, forest, regime_map
from odist.claims.judged import minutes_of
from odist.claims.table import ABSENT

TITLE = "Online distillation: the paper's rows and what was found here"
SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?", UNTESTED: "–"}  # so that the verdict does not rest on a colour
CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open", UNTESTED: "open"}
SUBJECT = (
    "Every row of Anil et al. 2018, <cite>Large scale distributed neural network training through online distillation</cite>, "
    "beside what the committed records say."
)
MADE = "Made by <code>odist index</code>, which trains nothing."
CLAIMS_CAPTION = (
    "Each claim's effect with its 95 % interval, in the colour of the system on its left side. A grey stroke is the boundary at "
    "which the claim turns. Filled points are decided by p-values adjusted (Holm) for the other claims of their page; hollow "
    "ones are not; diamonds are primary claims. All numbers stand in the pages' tables."
)
CHURN_CAPTION = (
    "Loss against churn, lower left is better, with 95 % intervals. Last panel: churn relative to the single model, as measured "
    "and as a formula has it that fits nothing: one of N copies keeps the share 1/N + (1 - 1/N) / (1 + wN/(N - 1)) of the "
    "variance, the mean of N models 1/N; churn is its root. Only systems that differ from the single model in the algorithm "
    "alone are in it."
)
REGIMES_CAPTION = (
    "A row is a cell of the language model: batch, learning rate, steps. Where an ensemble lies right of twice the batch, models "
    "differ by more than the noise of steps: the paper's regime. What averaged weights gain costs nothing."
)
HOW_TO_READ = (
    "Here: the ratio left / right for churn and steps, the difference left - right for losses and accuracies, with its 95 % "
    "interval over runs; copies of one run are averaged first. Verdicts rest on p-values adjusted for the other claims of their "
    "page. A regime is reached where the paper's conditions hold here by a test of their own; where they do not, a verdict says "
    "nothing about the paper's."
)
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --line: #cccccc; --soft: #f4f4f2;
  --holds: #0072B2; --fails: #A63E00; --open: #595959; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #161616; --line: #444444; --soft: #222222;
  --holds: #6DB9E8; --fails: #F29661; --open: #B0B0B0; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 104rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
p, li { max-width: 46rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.5rem; border-bottom: 1px solid var(--line); }
thead th { background: var(--soft); } tbody th { font-weight: 600; }
td.holds, td.fails, td.open { white-space: nowrap; }
.numbers { font-variant-numeric: tabular-nums; white-space: nowrap; }
.holds { color: var(--holds); font-weight: 600; } .fails { color: var(--fails); font-weight: 600; } .open { color: var(--open); }
code { font-size: 0.8rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure > div { background: #ffffff; padding: 0.5rem; border: 1px solid var(--line); overflow-x: auto; }
figure svg { display: block; width: 100%; height: auto; min-width: 34rem; }
figcaption { font-size: 0.86rem; max-width: 46rem; margin-top: 0.4rem; }
.claim td:not([rowspan]) { border-bottom: none; }
.command { min-width: 9rem; max-width: 15rem; } td[data-of="system"] { min-width: 10rem; }
.wide { overflow-x: auto; }
@media (max-width: 52rem) {
  thead { display: none; } table, tbody, tr, td, th { display: block; } tr { border-bottom: 2px solid var(--line); padding: 0.4rem 0; }
  th, td { border: none; padding: 0.15rem 0; } td[data-of]::before { content: attr(data-of) ": "; font-weight: 600; }
  .numbers { white-space: normal; } .command { min-width: 0; } .empty { display: none; }
}
@media print { body { font-size: 10pt; max-width: none; } a { color: inherit; text-decoration: none; }
  tr, figure { break-inside: avoid; } thead { display: table-header-group; } }
""".strip()


def html(index: Index) -> str:
    """The whole page; the same records give the same bytes."""
    verdicts = [one.verdict for one in index.answers() if one.verdict is not None]
    counts = ", ".join(f"{number} {words}" for words, number in decided(verdicts).items() if number)
    parts = [
        f"<h1>{escape(TITLE)}</h1>",
        f"<p>{SUBJECT} Of {len(verdicts)} claims on {len(index.pages)} pages: {escape(counts)}. {MADE}</p>",
        *([f"<p><strong>{escape(index.paper.finding)}</strong></p>"] if index.paper.finding else []),
        "<h2>The paper's rows</h2>",
        _rows_table(index),
        _regimes(index),
        "<h2>All claims</h2>",
        _figure(forest(index), "All claims with 95 % intervals", CLAIMS_CAPTION),
        "<h2>Churn against loss</h2>",
        _figure(churn_figure(index), "Loss against churn, and churn against theory", CHURN_CAPTION),
        "<h2>Regimes</h2>",
        _figure(regime_map(index), "Which noise is removed by what: gains on one model", REGIMES_CAPTION),
        "<h2>Pages</h2>",
        _pages_table(index),
        *[f"<p>{escape(sentence)}</p>" for sentence in index.shared],
        "<h2>How to read it</h2>",
        f"<p>{HOW_TO_READ}</p>",
    ]
    head = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(TITLE)}</title>\n'
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(parts) + "\n</body>\n</html>\n"


def _figure(svg: str | None, name: str, caption: str) -> str:
    if svg is None:
        return "<p>Not run.</p>"
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
    return f"<figure><div>{labelled}</div><figcaption>{escape(caption)}</figcaption></figure>"


def _cell(text: str, of: str, *, kind: str = "", rows: int = 1) -> str:
    """rows: how many lines of the table it spans"""
    classes = " ".join(part for part in (kind, "" if text else "empty") if part)
    span = f' rowspan="{rows}"' if rows > 1 else ""
    return f'<td data-of="{of}"{span}' + (f' class="{classes}"' if classes else "") + f">{text}</td>"


def _rows_table(index: Index) -> str:
    headings = (
        "row",
        "the paper's system",
        "the paper",
        "claim",
        "here",
        "verdict",
        "adjusted p",
        "regime",
        "run it again",
    )
    lines = ["<table>", "<thead><tr>" + "".join(f'<th scope="col">{one}</th>' for one in headings) + "</tr></thead>"]
    for row in index.rows:
        lines += ["<tbody>", *_row_lines(row), "</tbody>"]
    return '<div class="wide">\n' + "\n".join([*lines, "</table>", "</div>"])


def _row_lines(row: Row) -> list[str]:
    """One line a claim; what belongs to the whole row spans them."""
    answers: list[Answer | None] = [*row.answers] or [None]
    number, lines = len(answers), list[str]()
    commands = "<br>".join(f"<code>{escape(part)}</code>" for part in row.command.split("; "))
    for one in answers:
        own = [
            _cell("" if one is None else _link(one), "claim"),
            _cell(ABSENT if one is None else escape(one.numbers), "here", kind="numbers"),
            _verdict_cell(one),
            _cell("" if one is None else escape(one.p), "adjusted p", kind="numbers"),
        ]
        before, after = [], []
        if not lines:
            before = [
                f'<th scope="row" rowspan="{number}">{escape(row.row.id)}</th>',
                _cell(escape(f"{row.row.task}: {row.row.system}"), "system", rows=number),
                _cell(escape(row.row.paper), "the paper", rows=number),
            ]
            after = [
                _cell(escape(row.state), "regime", rows=number),
                _cell(commands, "run it again", kind="command", rows=number),
            ]
        kind = ' class="claim"' if len(lines) < number - 1 else ""
        lines.append(f"<tr{kind}>{''.join([*before, *own, *after])}</tr>")
    return lines


def _link(one: Answer) -> str:
    if one.verdict is None:  # there may be no such page yet
        return escape(one.place.claim)
    return f'<a href="{escape(one.place.page)}/{escape(one.place.page)}.md">{escape(one.place.claim)}</a>'


def _verdict_cell(one: Answer | None) -> str:
    if one is None or one.verdict is None:
        return _cell("not run", "verdict", kind="open")
    words = one.verdict.verdict
    censored = ", censored" if one.verdict.censored else ""
    return _cell(f"{SIGNS[words]} {words}{censored}", "verdict", kind=CLASSES[words])


def _regimes(index: Index) -> str:
    used = {row.row.regime: row.state for row in index.rows if row.row.regime}
    items = []
    for name, state in used.items():
        rows = ", ".join(row.row.id for row in index.rows if row.row.regime == name)
        items.append(f"<li>{escape(state)}: {escape(index.paper.regimes[name].text)} ({rows})</li>")
    return "<p>The regimes and their tests:</p>\n<ul>\n" + "\n".join(items) + "\n</ul>"


def _pages_table(index: Index) -> str:
    headings = ("page", "scale", "retrains", "claims", "minutes on two cores")
    lines = [
        "<table>",
        "<thead><tr>" + "".join(f'<th scope="col">{one}</th>' for one in headings) + "</tr></thead>",
        "<tbody>",
    ]
    for name, judged in index.pages.items():
        numbers = sorted({len(own.seeds) for own in judged.retrains.values()})
        seeds = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        own = [verdict for verdicts in judged.verdicts.values() for verdict in verdicts]
        counts = ", ".join(f"{number} {words}" for words, number in decided(own).items() if number) or "none of its own"
        cells = [
            f'<th scope="row"><a href="{escape(name)}/{escape(name)}.md">{escape(judged.recipe.title)}</a></th>',
            _cell(escape(judged.scale), "scale"),
            _cell(seeds, "retrains"),
            _cell(escape(counts), "claims"),
            _cell(f"{minutes_of(judged.records):.0f}", "minutes on two cores", kind="numbers"),
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])
