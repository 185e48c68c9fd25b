"""Digests of the files of a folder, in `digest.json` beside them: written with them, checked before they are believed.

Neither safetensors nor torch notices a flipped bit in a tensor; a training that goes on from one ends in other numbers.
Checkpoints have one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odist.errors import Damaged
from odist.files import write_atomically
from odist.run.damage import read_json

FILE = "digest.json"


def write_digest(folder: Path, names: Sequence[str], *, env: Mapping[str, Any]) -> None:
    """Write size and SHA-256 of files of `folder` into its digest.json, and where they come from.

    env: content of the run's env.json, from which it can be restored
    """
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}
    write_atomically(folder / FILE, json.dumps({"files": files, "env": dict(env)}, indent=1) + "\n")


def check_digest(folder: Path, names: Sequence[str], *, cure: str) -> bool:
    """Check files of `folder` against its digest.json. Returns whether there is one (older versions wrote none).

    cure: sentence that ends the message of Damaged
    Raises Damaged for a file whose content is not what was written.
    """
    if not os.path.lexists(folder / FILE):
        return False
    files = read_json(folder / FILE, cure=cure, kinds={"files": dict}, required=("files",))["files"]
    for name in names:
        path, known = folder / name, files.get(name)
        if not isinstance(known, dict) or not isinstance(known.get("sha256"), str):
            raise Damaged(f"{folder / FILE}: damaged (it does not know {name}). {cure}")
        try:
            size, sha256 = path.stat().st_size, _sha256(path)
        except OSError as error:
            raise Damaged(f"{path}: {'missing' if not path.exists() else error.strerror or error}. {cure}") from error
        if size != known.get("bytes"):
            raise Damaged(f"{path}: damaged ({size} bytes, {known.get('bytes')} were written). {cure}")
        if sha256 != known["sha256"]:
            raise Damaged(f"{path}: damaged (its content is not what was written, see {FILE} beside it). {cure}")
    return True


def written_env(folder: Path) -> dict[str, Any] | None:
    """The env.json of the run that wrote a folder with a digest; None if it is not known."""
    try:
        env = read_json(folder / FILE, cure="", kinds={"env": dict}).get("env")
    except Damaged:
        return None
    return env or None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
