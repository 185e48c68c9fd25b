"""What a Common Crawl preparation may be asked for, and what it reports.

The paper (Anil et al. 2018, section 3.1) says: WET files of June 2017, English documents that contain long
paragraphs, 24,006 word pieces. Every choice it leaves open is a field here, or written beside the code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odist.data.tokens import TokenStore
from odist.errors import UserError
from odist.prepare.criteo.options import splitting
from odist.prepare.text.clean import Filters

PAPER_VOCABULARY = 24_006
BASE_URL = "https://data.commoncrawl.org/"
ORIGINS = ("web", "json", "text")
LONG_PARAGRAPH_WORDS = 50  # our choice; about a third of a page's text of five sentences

# With --like: the tokenizer is the other store's, and every document is a validation document unless a share is given.
FITTED: dict[str, Any] = {"vocabulary": PAPER_VOCABULARY, "tokenizer_sentences": 500_000}
SPLITTING: dict[str, Any] = {"validation_fraction": 0.05, "split_seed": 0}


@dataclass(frozen=True)
class TextOptions:
    """Choices of a preparation; None takes the value in brackets.

    "web" is WET and WARC; JSON lines and data sets are taken as cleaned already, plain text as edited.
    """

    language: str = "en"  # two-letter code by resiliparse; any: no filter
    long_paragraph_words: int | None = None  # [50 for web, 0 else] a document needs one paragraph of so many words
    boilerplate: str = "auto"  # C4's line rules: auto (web only) | on | off
    duplicates: str = "auto"  # what is left out when repeated: paragraphs | documents | keep; auto: documents of plain text, else paragraphs
    passage_words: int = 2000  # plain text is cut into documents of about so many; 0: one a file
    validation_fraction: float | None = None  # [0.05] share of documents, drawn by a hash of their text
    split_seed: int | None = None  # [0] of that draw
    vocabulary: int | None = None  # [24,006, the paper's] pieces, the four special ones included
    tokenizer_sentences: int | None = (
        None  # [500,000] of the training part, drawn by document, that train the tokenizer
    )
    tokenizer: Path | None = None  # a sentencepiece *.model or a WordPiece *.txt instead of training one
    field: str = "text"  # of JSON lines and data sets
    damaged: str = "keep"  # keep: count, locate, keep what is readable | refuse: stop
    base_url: str = BASE_URL  # before the paths of a wet.paths list; a URL or a folder
    processes: int | None = None  # null: one per core; never changes the result


@dataclass
class TextReport:
    """What a preparation did. All but times and `reused` is kept in store.json under "report".

    A record is a WARC record, a JSON line, a row of a data set, or a passage of plain text:
    records = kept + the sum of dropped.
    """

    records: int
    kept: int
    dropped: dict[str, int]  # records by reason
    documents: dict[str, int]  # by split; they sum to kept
    tokens: dict[str, int]
    text_bytes: dict[str, int]  # UTF-8, that the tokens stand for
    unknown_tokens: int
    paragraphs: int  # of records with text
    dropped_paragraphs: dict[str, int]  # by reason, of documents that passed the language filter
    damage: dict[str, int]  # faults of the input by kind
    damage_located: list[str]  # "file: place: kind" of the first few of each file
    vocabulary: int
    special: dict[str, int]
    input_bytes: int
    store_bytes: int
    sources: list[dict[str, Any]]  # identity, records, kept, dropped, damage
    fingerprint: str
    fitted_fingerprint: str
    seconds: float = 0.0
    documents_per_second: float = 0.0  # of this call
    tokens_per_second: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)  # seconds by stage, of this call
    reused: bool = False  # the store was there already


def resolve(options: TextOptions, other: TokenStore | None) -> dict[str, Any]:
    """Options with nothing left open, as they enter the request; UserError for a wrong one."""
    given = {key: getattr(options, key) for key in (*FITTED, *SPLITTING)}
    if other is not None:
        wrong = [key for key in FITTED if given[key] is not None] + ["tokenizer"] * bool(options.tokenizer)
        if wrong:
            raise UserError(f"{', '.join(wrong)}: with --like the tokenizer is that of {other.path}. Leave it out.")
        if other.meta["tokenizer"]["file"] is None:
            raise UserError(f"{other.path}: made without a tokenizer; --like needs a store of `odist prepare commoncrawl`.")  # fmt: skip
        chosen = dict.fromkeys(FITTED) | splitting(given, list(SPLITTING), SPLITTING)
    else:
        if options.tokenizer is not None and (options.vocabulary or options.tokenizer_sentences):
            raise UserError("--tokenizer names a finished tokenizer; leave out --vocabulary and --tokenizer-sentences.")
        chosen = {key: ({**FITTED, **SPLITTING}[key] if value is None else value) for key, value in given.items()}
        if options.tokenizer is not None:
            chosen |= dict.fromkeys(FITTED)
    _check_fitted(chosen)
    for key in ("language", "long_paragraph_words", "boilerplate", "duplicates", "passage_words", "field", "damaged"):
        chosen[key] = getattr(options, key)
    _check(chosen)
    return chosen


def filters_of(chosen: dict[str, Any], *, origin: str) -> Filters:
    """The steps for one kind of input. origin: one of ORIGINS"""
    web, words = origin == "web", chosen["long_paragraph_words"]
    duplicates = chosen["duplicates"]
    if duplicates == "auto":
        duplicates = "documents" if origin == "text" else "paragraphs"
    return Filters(
        language=chosen["language"],
        long_paragraph_words=(LONG_PARAGRAPH_WORDS if web else 0) if words is None else words,
        boilerplate=web if chosen["boilerplate"] == "auto" else chosen["boilerplate"] == "on",
        duplicates=duplicates,
        validation_fraction=1.0 if chosen["validation_fraction"] is None else chosen["validation_fraction"],
        split_seed=chosen["split_seed"] or 0,
    )


def _check_fitted(chosen: dict[str, Any]) -> None:
    if chosen["vocabulary"] is not None and not 5 <= chosen["vocabulary"] <= 1 << 20:
        raise UserError(f"vocabulary={chosen['vocabulary']}: expected a number from 5 to 1048576.")
    if chosen["tokenizer_sentences"] is not None and chosen["tokenizer_sentences"] < 1:
        raise UserError(f"tokenizer_sentences={chosen['tokenizer_sentences']}: expected a positive number.")
    if chosen["validation_fraction"] is not None and not 0 <= chosen["validation_fraction"] < 1:
        raise UserError(f"validation_fraction={chosen['validation_fraction']}: expected a share from 0 to below 1.")


def _check(chosen: dict[str, Any]) -> None:
    allowed = {
        "boilerplate": ("auto", "on", "off"),
        "duplicates": ("auto", "paragraphs", "documents", "keep"),
        "damaged": ("keep", "refuse"),
    }
    for key, values in allowed.items():
        if chosen[key] not in values:
            raise UserError(f"{key}={chosen[key]!r}: expected one of {', '.join(values)}.")
    if chosen["language"] != "any":
        from odist.prepare.text.clean import language_codes

        known = language_codes()
        if chosen["language"] not in known:
            raise UserError(f"language={chosen['language']!r}: expected any, or one of {', '.join(known)}.")
    for key in ("long_paragraph_words", "passage_words"):
        if chosen[key] is not None and chosen[key] < 0:
            raise UserError(f"{key}={chosen[key]}: expected a number from 0 (off).")
