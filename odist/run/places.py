"""Folders that a user names for output, checked before anything is made; `~` is the home folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from odist.errors import UserError

URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
# In bytes. Systems allow 255 and 4,096, but files with longer names are made beside and below these folders.
MOST_NAME = 230
MOST_PATH = 3800


def local_folder(text: str, *, key: str) -> Path:
    """The folder called `text`, which need not exist.

    key: what was set, such as `run.dir` or `--output`, for messages
    Raises UserError for a URL, control characters, names too long for a file system, a file at this place or above it.
    """
    shown = text if len(text) <= 80 else f"{text[:40]}...{text[-30:]}"
    given = f"{key}{' ' if key.startswith('-') else '='}{shown!r}".replace("'", "")
    if URL.match(text):
        cure = "Write there and copy it when it is finished."
        if key == "run.dir":
            cure = f"Give one, and train.checkpoint_copy={shown} for copies of its checkpoints from which any machine goes on."
        raise UserError(f"{given}: expected a folder of this machine, not a URL. {cure}")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise UserError(f"{given}: holds a line break or another control character. Choose a name without one.")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{given}: there is no such home folder.") from None
    if any(len(os.fsencode(part)) > MOST_NAME for part in path.parts):
        raise UserError(f"{given}: a name in it is longer than {MOST_NAME} bytes. Choose a shorter one.")
    if len(os.fsencode(path.absolute())) > MOST_PATH:
        raise UserError(f"{given}: the path is longer than {MOST_PATH} bytes. Choose a shorter one.")
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UserError(
                f"{given}: {place} is a file, where a folder is needed. Choose another place, or remove the file."
            )
    return path
