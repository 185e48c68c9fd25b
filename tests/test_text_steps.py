"""The steps of the text preparation against slow and obvious ones."""

from __future__ import annotations

import random
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odist.prepare.text.clean import is_boilerplate, normalise, sentences
from odist.prepare.text.duplicates import load_keep, mark_duplicates, save_hashes
from odist.prepare.text.paragraphs import decode_lines, paragraphs, passages
from odist.prepare.text.tokenizer import with_ends

WORDS = ["the", "of", "a", "paragraph", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "sleeps"]


@pytest.mark.parametrize("bucket", [1, 7, 100, 10**6])
def test_duplicates_against_a_dictionary(tmp_path: Path, bucket: int) -> None:
    rng = np.random.default_rng(bucket)
    pieces = [rng.choice(np.array([0, 1, 2**63, 2**64 - 1, *rng.integers(0, 2**63, 40)], dtype=np.uint64), size=size)
             for size in (50, 0, 1, 80)]  # fmt: skip
    for piece, hashes in enumerate(pieces):
        save_hashes(tmp_path, piece=piece, hashes=hashes)
    mark_duplicates(tmp_path, num_pieces=4, poll=lambda: None, bucket=bucket)
    seen: set[int] = set()
    for piece, hashes in enumerate(pieces):
        expected = []
        for value in hashes.tolist():
            expected.append(value not in seen)
            seen.add(value)
        assert load_keep(tmp_path, piece=piece).tolist() == expected


def test_end_tokens_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 6, size=50)
    ids, ends = rng.integers(10, 99, size=lengths.sum()), rng.integers(1, 4, size=50)
    expected, at = [], 0
    for length, end in zip(lengths, ends, strict=True):
        expected += [*ids[at : at + length], end]
        at += length
    assert with_ends(ids, lengths, ends).tolist() == expected


@given(st.text(alphabet=st.sampled_from(list("abcAB .!?\"'()…I\u00a0\té\u0301\x00\u200b1")), max_size=200))
def test_sentences_joined_are_the_paragraph(text: str) -> None:
    line = normalise(text)
    assert " ".join(sentences(line)) == line
    assert normalise(line) == line


def test_sentences() -> None:
    text = (
        'Mr. Smith paid $3.5 to J. K. Rowling, e.g. in cash. "Why?" he said. "No!" She left... and came. It is I. Go.'
    )
    assert sentences(text) == ["Mr. Smith paid $3.5 to J. K. Rowling, e.g. in cash.", '"Why?" he said.', '"No!"',
                               "She left... and came.", "It is I.", "Go."]  # fmt: skip
    assert max(map(len, sentences("word " * 3000))) <= 2000


def test_boilerplate() -> None:
    kept = ["This line has just five words.", "“Is this one a sentence?”"]
    left_out = ["Too short here.", "This one has no full stop at all", "Please enable JavaScript to see this page.",
                "We use cookies to make this site better, see our cookie policy."]  # fmt: skip
    assert [is_boilerplate(line) for line in kept + left_out] == [False] * 2 + [True] * 4


def test_paragraphs_of_every_layout() -> None:
    texts = [" ".join(random.Random(seed).choices(WORDS, k=80)).capitalize() + "." for seed in range(40)]
    wrapped = [textwrap.wrap(text, 70) for text in texts]
    layouts = {
        "a line each": "\n".join(texts),
        "blank between": "\n\n".join(texts),
        "wrapped": "\n\n".join("\n".join(lines) for lines in wrapped),
        "indented": "\n".join("\n".join(["  " + lines[0], *lines[1:]]) for lines in wrapped),
    }
    for name, layout in layouts.items():
        for text in (layout, layout.replace("\n", "\r\n")):
            pieces = [("\ufeff" + text).encode()[at : at + 37] for at in range(0, len(text) + 40, 37)]
            assert list(paragraphs(decode_lines(pieces))) == texts, name


def test_passages() -> None:
    texts = [" ".join(["w"] * size) for size in (900, 900, 900, 10, 5000, 3)]
    found = list(passages(texts, words=2000))
    assert [sum(len(text.split()) for text in passage) for passage in found] == [2700, 2010, 2000, 1003]
    assert " ".join(" ".join(passage) for passage in found) == " ".join(texts)
    assert list(passages(texts, words=0)) == [texts]
