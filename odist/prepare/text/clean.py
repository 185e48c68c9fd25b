"""Text to documents of sentences: normal form, paragraphs, sentences, filters, validation part.

A pure function of one record's text and of the options; duplicates, which need all records, are found in duplicates.py.

Boilerplate: the line rules of C4 (Raffel et al. 2020, section 2.2): a line stays when it ends in terminal
punctuation, has five words or more, and holds none of the phrases of BOILERPLATE.
Language: that of resiliparse's `detect_fast` on the first LANGUAGE_CHARS characters.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from odist.errors import UserError
from odist.prepare.options import draw
from odist.prepare.text.options import Filters

LANGUAGE_CHARS = 8192
LANGUAGE_CUTOFF = 1200  # rank above which resiliparse calls its answer usually wrong
MIN_WORDS = 5
BAD_CHARACTERS = 0.01  # share of characters that no text has; above it the record is binary
MAX_WORD = 1 << 17  # characters without a space, which a tokenizer would have to take at once
MAX_SENTENCE = 2000  # characters; longer ones are cut at a space, as lists without punctuation are
BOILERPLATE = (
    *("javascript", "lorem ipsum", "{", "terms of use", "privacy policy"),
    *("cookie policy", "uses cookies", "use of cookies", "use cookies"),
)

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\ufffe\uffff]|[\ud800-\udfff]")
_BAD = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]]*\s+")
_TERMINAL = re.compile(r"[.!?…。！？][\"'”’»)\]*_]*$")
_WORD_BEFORE = re.compile(r"([^\s(\[\"'“‘]*)$")
ABBREVIATIONS = re.compile(
    r"Mr|Mrs|Ms|Messrs|Dr|Prof|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Maj|Gov|Sen|Rep|St|Sr|Jr|Mt|Nos?|Vol|Figs?|Eq|Ch|Sec|pp?|vs|etc|"
    r"e\.g|i\.e|cf|al|ca|approx|Inc|Ltd|Co|Corp|Dept|Univ|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
)


@dataclass
class Document:
    """A kept document: sentences by paragraph, and a key that its text alone decides."""

    key: int  # 64 bits
    split: str
    paragraphs: list[list[str]]


@dataclass
class DroppedRecord:
    """Why a record gave no document."""

    reason: str


@dataclass
class ParagraphCounts:
    """Paragraphs seen, and those left out by reason."""

    seen: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def is_binary(text: str) -> bool:
    """Tell whether a text has too many control and replacement characters to be text."""
    return len(_BAD.findall(text)) > BAD_CHARACTERS * max(1, len(text))


def normalise(line: str) -> str:
    """Bring a line to Unicode NFC, every run of white space one space, without control and format characters."""
    if _CONTROL.search(line) is not None:
        line = _CONTROL.sub("", line)
    if not line.isascii():
        line = unicodedata.normalize("NFC", line)
    return " ".join(line.split())


def clean(
    lines: Sequence[str],
    *,
    filters: Filters,
    detect: Callable[[str], str] | None,
    counts: ParagraphCounts,
) -> Document | DroppedRecord:
    """Turn the paragraphs of one record into a document, or say why not.

    lines: paragraphs as they stand in the input, one each
    detect: text -> language code; None with language "any"
    counts: grows
    """
    if is_binary("\n".join(lines)):
        return DroppedRecord("binary")
    paragraphs = [text for text in map(normalise, lines) if text]
    if not paragraphs:
        return DroppedRecord("empty")
    if any(len(text) > MAX_WORD and max(map(len, text.split(" "))) > MAX_WORD for text in paragraphs):
        return DroppedRecord("word too long")
    counts.seen += len(paragraphs)
    if detect is not None and detect(_sample(paragraphs)) != filters.language:
        return DroppedRecord(f"language not {filters.language}")
    if filters.boilerplate:
        kept = [text for text in paragraphs if not is_boilerplate(text)]
        counts.dropped["boilerplate"] += len(paragraphs) - len(kept)
        paragraphs = kept
        if not paragraphs:
            return DroppedRecord("nothing but boilerplate")
        # Menus may be in another language than the text.
        if detect is not None and detect(_sample(kept)) != filters.language:
            return DroppedRecord(f"language not {filters.language}")
    if not has_long_paragraph(paragraphs, filters.long_paragraph_words):
        return DroppedRecord("no long paragraph")
    key = document_key(paragraphs)
    split = "validation" if draw(key, seed=filters.split_seed) < filters.validation_fraction else "train"
    return Document(key, split, [sentences(text) for text in paragraphs])


def _sample(paragraphs: list[str]) -> str:
    # The longest paragraphs tell the language better than menus do; short records are taken whole.
    if sum(map(len, paragraphs)) <= LANGUAGE_CHARS:
        return "\n".join(paragraphs)
    chosen, size = [], 0
    for text in sorted(paragraphs, key=len, reverse=True):
        chosen.append(text)
        size += len(text)
        if size >= LANGUAGE_CHARS:
            break
    return "\n".join(chosen)[:LANGUAGE_CHARS]


def language_detector() -> Callable[[str], str]:
    """Return resiliparse's detector: text -> code, or "unknown"; UserError when it is not installed."""
    try:
        from resiliparse.parse.lang import detect_fast
    except ImportError:
        raise UserError(
            "the language filter needs resiliparse, which is not installed. Type: pip install resiliparse; "
            "or --language any to leave the filter out."
        ) from None
    return lambda text: str(detect_fast(text, cutoff=LANGUAGE_CUTOFF)[0])


def language_codes() -> list[str]:
    """Return the codes that the detector knows; UserError when it is not installed."""
    language_detector()
    from resiliparse.parse.lang import supported_langs

    return sorted(supported_langs())


def is_boilerplate(paragraph: str) -> bool:
    """Tell whether the line rules of C4 leave this paragraph out."""
    if paragraph.count(" ") < MIN_WORDS - 1 or _TERMINAL.search(paragraph[-8:]) is None:
        return True
    lower = paragraph.lower()
    return any(phrase in lower for phrase in BOILERPLATE)


def has_long_paragraph(paragraphs: Iterable[str], words: int) -> bool:
    """Tell whether one of the paragraphs has `words` words or more."""
    return words <= 0 or any(text.count(" ") >= words - 1 for text in paragraphs)


def document_key(paragraphs: list[str]) -> int:
    """Return 64 bits that the cleaned text alone decides, whatever file it came from."""
    return int.from_bytes(hashlib.blake2b("\n".join(paragraphs).encode(), digest_size=8).digest(), "little")


def sentences(paragraph: str) -> list[str]:
    """Cut a normalised paragraph behind terminal punctuation, but not at abbreviations or before lower-case letters.

    Joined by one space the sentences are the paragraph again.
    """
    found: list[str] = []
    start = 0
    for match in _END.finditer(paragraph):
        stop = match.end()
        if stop >= len(paragraph):
            break
        after = paragraph[stop : stop + 3].lstrip("\"'“‘«([")
        if after and (after[0].islower() or after[0] in ",;:-–—"):
            continue
        if paragraph[match.start()] == "." and _abbreviation(paragraph, match.start()):
            continue
        found += _pieces(paragraph[start : stop - 1])
        start = stop
    found += _pieces(paragraph[start:])
    return found


def _abbreviation(text: str, dot: int) -> bool:
    before = _WORD_BEFORE.search(text[max(0, dot - 16) : dot])
    word = "" if before is None else before.group(1)
    return (
        ABBREVIATIONS.fullmatch(word) is not None or (len(word) == 1 and word.isupper() and word != "I") or "." in word
    )


def _pieces(sentence: str) -> Iterator[str]:
    while len(sentence) > MAX_SENTENCE:
        cut = sentence.rfind(" ", 1, MAX_SENTENCE)
        if cut < 0:
            cut = sentence.find(" ", MAX_SENTENCE)
            if cut < 0:
                break
        yield sentence[:cut]
        sentence = sentence[cut + 1 :]
    yield sentence
