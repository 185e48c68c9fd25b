"""Web pages to text by resiliparse, with limits, so that a page can neither stop a preparation nor fill the memory.

Parsing and extraction are superlinear in how deeply elements are nested, so pages that cost too much are refused
before they are parsed (by their size and tags) and before text is extracted (by the tree). The limits are on numbers
that the page alone decides, not on seconds: the same pages are refused on every machine.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable

from odist.errors import UserError
from odist.prepare.text.warc import Response

MAX_BYTES = 1 << 23  # Common Crawl cuts payloads at 5 MB
MAX_TAGS = 60_000  # the parser may search all open elements at each of them
MAX_REOPENED = 2_000_000  # elements that the parser may have to make by itself
FEW_TAGS = 4_000  # their tree costs a second at worst
MAX_DEPTHS = 20_000_000  # sum over elements and texts of their depth: what extraction of the main content takes

# Formatting elements that stay open beyond their parent, which the parser opens again in every element that follows;
# of equal ones at most three (HTML standard, "reconstruct the active formatting elements").
_FORMATTING = re.compile(r"<(b|big|code|em|font|i|s|small|strike|strong|tt|u)((?=[\s/>])[^>]*)>", re.I)
_EQUAL_KEPT = 3
_UNUSABLE = frozenset(("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"))


class RefusedPage(Exception):
    """A page over one of the limits; its text says which, in a few words."""


def is_text_encoding(charset: str) -> bool:
    """Tell whether text on the web may be in this encoding, as far as Python knows it."""
    try:
        codec = codecs.lookup(charset)
    except (LookupError, ValueError):
        return False
    return codec._is_text_encoding and codec.name.replace("_", "-") not in _UNUSABLE  # "hex" is a codec too


def page_reader(*, main_content: bool) -> Callable[[Response], str]:
    """Return what turns a page into text, a paragraph a line, and raises RefusedPage. UserError when not installed.

    main_content: leave out what looks like menus, headers and footers
    """
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise UserError(
            "WARC files hold HTML, which is read with resiliparse; it is not installed. Type: pip install resiliparse. "
            "WET files do not need it."
        ) from None

    def convert(page: Response) -> str:
        if len(page.body) > MAX_BYTES:
            raise RefusedPage("page too large")
        encoding = page.charset
        if not is_text_encoding(encoding):
            encoding = detect_encoding(page.body, from_html_meta=True) or "utf-8"
        html = bytes_to_str(page.body, encoding if is_text_encoding(encoding) else "utf-8", errors="replace")
        html, num_tags = _bounded(html)
        tree = HTMLTree.parse(html)
        if num_tags > FEW_TAGS:
            _check_depths(tree)
        return str(
            extract_plain_text(
                tree, preserve_formatting=True, main_content=main_content, list_bullets=False, alt_texts=False
            )
        )

    return convert


def _bounded(html: str) -> tuple[str, int]:
    # (the page, tags in it); without the attributes of formatting elements where they could make the tree explode
    num_tags = html.count("<")
    if num_tags > MAX_TAGS:
        raise RefusedPage("page with too many tags")
    if num_tags * _most_reopened(match.group(0) for match in _FORMATTING.finditer(html)) <= MAX_REOPENED:
        return html, num_tags
    if num_tags * _most_reopened(match.group(1).lower() for match in _FORMATTING.finditer(html)) > MAX_REOPENED:
        raise RefusedPage("page too deeply nested")
    return _FORMATTING.sub(r"<\1>", html), num_tags


def _most_reopened(tags: Iterable[str]) -> int:
    return sum(min(_EQUAL_KEPT, count) for count in Counter(tags).values())


def _check_depths(tree: object) -> None:
    from resiliparse.parse.html import traverse_dom

    total = 0

    def visit(context: object) -> None:
        nonlocal total
        total += context.depth  # type: ignore[attr-defined]
        if total > MAX_DEPTHS:
            raise RefusedPage("page too deeply nested")

    traverse_dom(tree.document, visit)  # type: ignore[attr-defined]
