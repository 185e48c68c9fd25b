"""Options and report of a text preparation.

The paper (Anil et al. 2018, section 3.1) says: WET files of June 2017, English documents that contain long
paragraphs, 24,006 word pieces. Every choice it leaves open is an option here, or is written beside the code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.config.key import BELOW_ONE, NOT_NEGATIVE, Bounds, key
from odist.errors import UserError
from odist.prepare.options import resolve

if TYPE_CHECKING:
    from odist.data.tokens import TokenStore

PAPER_VOCABULARY = 24_006
BASE_URL = "https://data.commoncrawl.org/"
ORIGINS = ("web", "json", "text")
LONG_PARAGRAPH_WORDS = 50  # our choice; about a third of a page's text of five sentences
FITTED = ("vocabulary", "tokenizer_sentences")  # of a tokenizer that is trained here


@dataclass(frozen=True)
class TextOptions:
    """What may be asked of a preparation; None is the default of `TextChoices`, or what --like says.

    "web" is WET and WARC; JSON lines and data sets are taken as cleaned already, plain text as edited.
    processes never changes the result.
    """

    language: str | None = key(None, "Two-letter code as resiliparse has it, or any.")
    long_paragraph_words: int | None = key(
        None, "A document needs a paragraph of so many words. [50 for WET and WARC, else 0]", bounds=NOT_NEGATIVE
    )
    boilerplate: str | None = key(
        None, "Leave out lines by C4's rules; auto: of WET and WARC.", choices=("auto", "on", "off")
    )
    duplicates: str | None = key(
        None,
        "Leave out what is repeated; auto: documents of plain text, else paragraphs.",
        choices=("auto", "paragraphs", "documents", "keep"),
    )
    passage_words: int | None = key(
        None, "Plain text is cut into documents of about so many; 0: one for each file.", bounds=NOT_NEGATIVE
    )
    validation_fraction: float | None = key(None, "Share of validation documents, also with --like.", bounds=BELOW_ONE)
    split_seed: int | None = key(None, "Seed of their draw.")
    vocabulary: int | None = key(None, "Vocabulary size, special tokens included.", bounds=Bounds(5, 1 << 20))
    tokenizer: Path | None = key(None, "Sentencepiece *.model to use instead of training one.")
    tokenizer_sentences: int | None = key(
        None, "Approximate number of sentences used to train the tokenizer.", bounds=Bounds(1)
    )
    field: str | None = key(None, "Field of JSON lines and data sets.")
    damaged: str | None = key(None, "Damaged input: keep what is readable, or stop.", choices=("keep", "refuse"))
    base_url: str = key(BASE_URL, "URL or folder before the paths of a wet.paths list.")
    processes: int | None = key(None, "Files read at once. [one per core]", bounds=Bounds(1))

    def resolve(self, other: TokenStore | None) -> TextChoices:
        """Leave nothing open. other: the store named by --like. Raises UserError for a wrong option or store."""
        fitted = [name for name in FITTED if getattr(self, name) is not None]
        if other is not None:
            wrong = fitted + ["tokenizer"] * (self.tokenizer is not None)
            if wrong:
                raise UserError(f"{', '.join(wrong)}: with --like the tokenizer is that of {other.path}. Leave it out.")
            if other.meta["tokenizer"]["file"] is None:
                raise UserError(
                    f"{other.path}: made without a tokenizer; --like needs a store of `odist prepare text`."
                )
            if other.meta["tokenizer"]["kind"] == "wordpiece":
                raise UserError(
                    f"{other.path}: its tokenizer is a WordPiece vocabulary, which is no longer read. For --like name "
                    "a store with a sentencepiece model, or prepare that one again."
                )
        elif self.tokenizer is not None and fitted:
            raise UserError("--tokenizer names a finished tokenizer; leave out --vocabulary and --tokenizer-sentences.")
        trained = other is None and self.tokenizer is None
        like = None if other is None else other.path
        choices = resolve(self, TextChoices, like=like, fixed={} if trained else dict.fromkeys(FITTED))
        if choices.language != "any":
            from odist.prepare.text.clean import language_codes

            known = language_codes()
            if choices.language not in known:
                raise UserError(f"language={choices.language!r}: expected any, or one of {', '.join(known)}.")
        return choices


@dataclass(frozen=True)
class TextChoices:
    """Options with nothing left open, as they stand in store.json; without a split all documents are for validation."""

    vocabulary: int | None = PAPER_VOCABULARY  # pieces, the four special ones included; None: of a given tokenizer
    tokenizer_sentences: int | None = 500_000  # of the training part, drawn by document
    validation_fraction: float | None = 0.05  # of the documents, drawn by a hash of their text
    split_seed: int | None = 0
    language: str = "en"
    long_paragraph_words: int | None = None  # LONG_PARAGRAPH_WORDS for web, else 0
    boilerplate: str = "auto"
    duplicates: str = "auto"
    passage_words: int = 2000
    field: str = "text"
    damaged: str = "keep"

    def filters(self, *, origin: str) -> Filters:
        """Return the steps for one kind of input. origin: one of ORIGINS"""
        web, words, duplicates = origin == "web", self.long_paragraph_words, self.duplicates
        if duplicates == "auto":
            duplicates = "documents" if origin == "text" else "paragraphs"
        return Filters(
            language=self.language,
            long_paragraph_words=(LONG_PARAGRAPH_WORDS if web else 0) if words is None else words,
            boilerplate=web if self.boilerplate == "auto" else self.boilerplate == "on",
            duplicates=duplicates,
            validation_fraction=1.0 if self.validation_fraction is None else self.validation_fraction,
            split_seed=self.split_seed or 0,
        )


@dataclass(frozen=True)
class Filters:
    """The steps for one kind of input.

    language: two-letter code, "any" keeps all
    long_paragraph_words: a document needs a paragraph of so many words; 0 keeps all
    boilerplate: leave out lines by the C4 rules
    duplicates: "paragraphs" | "documents" | "keep"
    validation_fraction, split_seed: share and draw of the validation part; fraction 1: every document
    """

    language: str
    long_paragraph_words: int
    boilerplate: bool
    duplicates: str
    validation_fraction: float
    split_seed: int


@dataclass
class TextReport:
    """What a preparation did. Fields without a default are kept in store.json under "report".

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
    seconds: float = 0.0  # of this call, as all below
    documents_per_second: float = 0.0
    tokens_per_second: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)  # seconds by stage
    reused: bool = False  # the store was there already
