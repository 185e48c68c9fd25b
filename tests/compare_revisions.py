"""Train the runs of the golden traces at another commit and here, and compare the bits of their weights.

    make compare REV=v0.1.0

Every run is a process of its own with the sources of its commit. The exit code is 1 if any hash differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from test_golden import ALGORITHMS, COMMON

ROOT = Path(__file__).resolve().parents[1]
# The second line is for commits in which the command line was one module.
START = """
try: from odist.cli.main import main
except ImportError: from odist.cli import main
main()"""


def weight_hashes(source: Path, *, folder: Path, name: str) -> list[str] | str:
    """Train one golden run with the package in `source`; return a hash for each group, or the error's last line."""
    words = {word.partition("=")[0]: word for word in (*COMMON, *ALGORITHMS[name])}  # a key typed twice is refused
    command = [sys.executable, "-c", START, "train", *words.values()]
    command += ["scale=smoke", "run.progress=false", f"run.dir={folder / name}"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(source)}, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1]
    results = json.loads((folder / name / "results.json").read_text(encoding="utf-8"))
    return [group["weight_hash"] for group in results["groups"]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the weights of golden runs between a commit and this tree.")
    parser.add_argument("revision", help="commit, tag or branch to compare with")
    parser.add_argument("names", nargs="*", default=sorted(ALGORITHMS), help="runs; default: all of them")
    chosen = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as scratch:
        there, out = Path(scratch) / "source", Path(scratch) / "runs"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", there, chosen.revision], cwd=ROOT, check=True)
        try:
            for name in chosen.names:
                found = []
                for source, folder in ((there, out / "there"), (ROOT, out / "here")):
                    folder.mkdir(parents=True, exist_ok=True)
                    found.append(weight_hashes(source, folder=folder, name=name))
                same = found[0] == found[1] and not isinstance(found[0], str)
                differing += not same
                print(f"{name:28} {'equal' if same else f'DIFFERENT: {found[0]} there, {found[1]} here'}", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", there], cwd=ROOT, check=True)
    print(f"{len(chosen.names) - differing} of {len(chosen.names)} runs have equal weights")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
