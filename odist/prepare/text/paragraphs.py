"""Plain text to passages: paragraphs out of lines, broken by hand or not, and passages of about equal length.

A book is cut into passages, each of which is a document from then on: for filters, split, partition and
streams.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

MAX_LINE = 1 << 20  # characters; a longer line is cut
MAX_PASSAGE = 1 << 22  # characters, whatever its words
MAX_FILE = 1 << 26  # characters of a passage where a file is to be one
MAX_BLANK = 1000  # blank lines in a row; more count as so many
SAMPLE = 4000  # lines that decide how a text is laid out
SAMPLE_CHARACTERS = 1 << 24  # at most
WRAPPED_WIDTH = 120  # a text whose lines stay below it is broken by hand
NARROW = 20
_BLANK = re.compile(rf"\n{{{MAX_BLANK},}}")
_TERMINAL = re.compile(r"[.!?:…][\"'”’»)\]*_]*$")


@dataclass(frozen=True)
class ParagraphLayout:
    """How paragraphs are told apart.

    wrapped: a paragraph runs over several lines
    width: of a full line, characters
    blank: an empty line ends a paragraph; indented: an indented line begins one; else a short last line ends one
    """

    wrapped: bool
    width: int
    blank: bool
    indented: bool


def decode_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield lines of UTF-8 text (UTF-16 by its mark) without line ends; wrong bytes become U+FFFD."""
    decoder: codecs.IncrementalDecoder | None = None
    rest = ""
    for piece in pieces:
        if decoder is None:
            utf16 = piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            decoder = codecs.getincrementaldecoder("utf-16" if utf16 else "utf-8-sig")("replace")
        text = (rest + decoder.decode(piece)).replace("\r\n", "\n").replace("\f", "\n")
        if "\n" * MAX_BLANK in text:
            text = _BLANK.sub("\n" * MAX_BLANK, text)
        *lines, rest = text.split("\n")
        yield from lines
        while len(rest) > MAX_LINE:
            yield rest[:MAX_LINE]
            rest = rest[MAX_LINE:]
    if decoder is not None:
        rest += decoder.decode(b"", True)
    if rest:
        yield rest


def find_paragraph_layout(lines: list[str]) -> ParagraphLayout:
    """Tell how a text is laid out, from its first lines.

    A rule of our own, right for all 54 of 100_english_novels and for verse and wiki text as far as looked at.
    """
    full = [line for line in lines if line.strip()]
    if not full:
        return ParagraphLayout(False, 0, True, False)
    lengths = sorted(len(line.rstrip()) for line in full)
    width = lengths[len(lengths) * 9 // 10]
    wrapped = NARROW <= width <= WRAPPED_WIDTH and len(full) > 20
    blank = len(full) < 0.97 * len(lines)
    indented = 0.01 < sum(line[0] in " \t" for line in full) / len(full) < 0.6
    return ParagraphLayout(wrapped, width, blank, indented)


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Yield the paragraphs of a text; its first SAMPLE lines decide the layout."""
    stream = iter(lines)
    start: list[str] = []
    size = 0
    for line in stream:
        start.append(line)
        size += len(line)
        if len(start) >= SAMPLE or size >= SAMPLE_CHARACTERS:
            break
    layout = find_paragraph_layout(start)
    held: list[str] = []
    size = 0
    for line in chain(_handed_over(start), stream):
        text = line.strip()
        if not layout.wrapped:
            if text:
                yield text
            continue
        begins = not text or (layout.indented and line[:1] in " \t" and not layout.blank)
        if held and (begins or size > MAX_LINE):
            yield " ".join(held)
            held, size = [], 0
        if text:
            held.append(text)
            size += len(text)
            short = len(text) < 0.8 * layout.width and _TERMINAL.search(text) is not None
            if not layout.blank and not layout.indented and short:
                yield " ".join(held)
                held, size = [], 0
    if held:
        yield " ".join(held)


def _handed_over(lines: list[str]) -> Iterator[str]:
    # One after the other, so that a line is freed once it is used.
    lines.reverse()
    while lines:
        yield lines.pop()


def passages(texts: Iterable[str], *, words: int) -> Iterator[list[str]]:
    """Yield consecutive paragraphs, each passage of `words` words or a few more (the last: fewer); 0: all in one.

    A paragraph longer than twice that is cut at a space. A passage also ends at MAX_PASSAGE characters (MAX_FILE with
    `words` 0), so that text without spaces does not fill the memory.
    """
    held: list[str] = []
    count = size = 0
    limit = MAX_PASSAGE if words > 0 else MAX_FILE
    for text in texts:
        for piece in _cut(text, words):
            held.append(piece)
            count += piece.count(" ") + 1
            size += len(piece) + 1
            if 0 < words <= count or size >= limit:
                yield held
                held, count, size = [], 0, 0
    if held:
        yield held


def _cut(text: str, words: int) -> Iterator[str]:
    if words <= 0 or text.count(" ") < 2 * words:
        yield text
        return
    parts = text.split()
    for start in range(0, len(parts), words):
        yield " ".join(parts[start : start + words])
