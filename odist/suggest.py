"""Messages for a word that is not among the known ones: the nearest, and all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def choose(word: str, choices: Iterable[str]) -> str:
    """The sentence that names the nearest of `choices` and all of them."""
    names = list(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{hint}Choices: {', '.join(names)}."


def unknown_key(key: str, keys: Iterable[str]) -> str:
    """The message for a key that the schema has not: the nearest keys, by the whole and by the last part."""
    names = list(keys)
    last = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, names, n=4, cutoff=0.6)
    near += [name for name in names if difflib.SequenceMatcher(None, last, name.rsplit(".", 1)[-1]).ratio() > 0.75]
    nearest = list(dict.fromkeys(near))[:5]
    siblings = [name for name in names if name.rpartition(".")[0] == key.rpartition(".")[0]]
    rest = f"Nearest: {', '.join(nearest)}." if nearest else f"Keys here: {', '.join(siblings or names)}."
    return f"There is no key {key}. {rest} All keys: odist train --help"
