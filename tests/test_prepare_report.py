"""What `odist prepare` prints: a report in words, what works with the store, and what a pattern passed over."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import test_prepare_criteo as criteo
import test_prepare_imagenet as images
import test_prepare_text as text
from test_cli import odist

from odist.cli import prepare_progress
from odist.cli.main import main
from odist.cli.prepare_progress import PrepareProgress

Typed = Callable[..., tuple[str, str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Type `odist prepare ...` in a folder with inputs; what is printed to standard output and to standard error."""
    rows = criteo.make_rows(60)
    (tmp_path / "rows.txt").write_bytes(criteo.text_of(rows))
    (tmp_path / "bare.txt").write_bytes(criteo.text_of(rows, labelled=False))
    text.write_json(tmp_path / "text.jsonl.gz", [text.story(seed) for seed in range(12)])
    images.write_folder(tmp_path / "images", images.files())
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["odist", "prepare", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == (2 if "error: " in printed.err else 0), printed.err
        return printed.out, printed.err

    return run


ROWS = ("criteo", "--buckets", "99", "--input", "rows.txt")
BARE = ("criteo", "--buckets", "99", "--input", "bare.txt")
TEXT = (
    "text",
    "--vocabulary",
    "120",
    "--processes",
    "1",
    "--input",
    "text.jsonl.gz",
    "--validation-fraction",
    "0.3",
)
IMAGES = ("imagenet", "--processes", "1", "--input", "images")


def test_the_report_ends_with_what_works(typed: Typed) -> None:
    def last(*words: str) -> str:
        return typed(*words)[0].split("\n  time ")[1].partition("\n")[2]

    train = "use it: odist train task=criteo data=prepared data.path="
    assert last(*ROWS, "--output", "old") == f"{train}old\n"
    later = last("criteo", "--input", "rows.txt", "--output", "later", "--like", "old")
    assert later.startswith("use it: odist eval RUN --data later\n")
    assert "odist train" not in later
    day2 = last("criteo", "--input", "rows.txt", "--output", "day2", "--like", "old", "--validation-fraction", "0.2")
    assert day2.startswith(f"{train}day2\n")
    assert "a model that was trained on old as teacher: odist train " in day2
    assert day2.endswith("data.path=day2 algorithm=distill 'algorithm.teachers=[RUN]'\n")
    bare = last(*BARE, "--output", "bare")
    assert bare.startswith("no labels: no model can be trained on these rows")
    assert "odist prepare criteo --input FILE --like STORE" in bare
    assert "odist train" not in bare
    scored = last("criteo", "--input", "bare.txt", "--output", "scored", "--like", "old")
    assert scored.startswith("no labels: usable for `odist eval` only: odist eval RUN --data scored --output")
    assert last(*ROWS, "--output", "all", "--validation-fraction", "0").startswith("no validation rows")
    assert last(*TEXT, "--output", "text") == "use it: odist train task=lm data=prepared data.path=text\n"
    assert last(*IMAGES, "--output", "im") == "use it: odist train task=imagenet data=prepared data.path=im\n"
    assert last(*IMAGES, "--like", "im", "--output", "im2").startswith("use it: odist eval RUN --data im2\n")


@pytest.mark.parametrize("words", [ROWS, TEXT, IMAGES], ids=lambda words: words[0])
def test_the_report_is_in_words(typed: Typed, words: tuple[str, ...]) -> None:
    out, _ = typed(*words, "--output", "made")
    assert out.startswith("made: prepared\n")
    assert not re.search(r"[{}\[\]]|None|False|reused|_ns|entries, see|\d{10}", out)
    assert re.search(r"\n  read  +[\d.]+ k?B of 1 input\n", out)
    assert re.search(r"\n  \w+ +[\d,]+ training, +[\d,]+ validation\n", out)
    if words is not IMAGES:
        assert re.search(r", of 20\d\d-\d\d-\d\d \d\d:\d\d\n", out)
    again, _ = typed(*words, "--output", "made")
    assert again.startswith("made: was prepared already by the same command\n")


@pytest.mark.parametrize("words", [ROWS, TEXT, IMAGES], ids=lambda words: words[0])
def test_the_report_as_json(typed: Typed, words: tuple[str, ...]) -> None:
    out, _ = typed(*words, "--output", "made", "--json")
    report = json.loads(out)
    kept = json.loads(Path("made/store.json").read_text())["report"]
    assert {key: report[key] for key in kept} == kept
    assert report["reused"] is False


def test_faults_stand_in_the_report(typed: Typed) -> None:
    Path("bad.txt").write_bytes(Path("rows.txt").read_bytes() + b"\nhello\n1\n" * 4)
    out, _ = typed("criteo", "--input", "bad.txt", "--output", "s", "--bad-rows", "skip")
    assert "left out     12 bad rows: columns 8, empty 4\n" in out
    assert "bad.txt:61: an empty line\n" in out
    assert "and 7 more\n" in out
    _, error = typed("criteo", "--input", "bad.txt", "--output", "t")
    assert "bad.txt:61: an empty line. 12 of the first 72 rows are bad. " in error


def test_the_hint_can_be_typed(typed: Typed, tmp_path: Path) -> None:
    out, _ = typed(*ROWS, "--output", "my rows, x=1/it's")
    hint = shlex.split(out.splitlines()[-1].removeprefix("use it: "))
    done = odist(*hint[1:], "scale=smoke", "train.batch=20", "run.progress=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_rows_without_a_validation_part_do_not_train(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(*ROWS, "--output", "all", "--validation-fraction", "0")
    words = ["data=prepared", "data.path=all", "scale=smoke", "train.batch=20", "run.dir=run"]
    monkeypatch.setattr(sys, "argv", ["odist", "train", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2


# Patterns


@pytest.mark.parametrize(("words", "name"), [(ROWS, "rows.txt"), (TEXT, "text.jsonl.gz"), (IMAGES, "images.tar")])
def test_a_pattern_says_which_folders_it_passes_over(typed: Typed, words: tuple[str, ...], name: str) -> None:
    Path("images.tar").write_bytes(images.tar_bytes(images.files()))
    for folder in ("in", "in/a/b", "in/c", "in/empty"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        if folder != "in/empty":
            shutil.copy(name, f"{folder}/{len(folder)}-{name}")
    words = words[: words.index("--input")]
    _, noted = typed(*words, "--input", "in/*", "--output", "one")
    assert ("note: in/*: 2 folders match too, and the files in them are not read: in/a/, in/c/. To read them: "
            "--input 'in/**/*'\n") in noted  # fmt: skip
    _, noted = typed(*words, "--input", "in/**/*", "--output", "all")
    assert "note: " not in noted
    sources = [json.loads(Path(folder, "store.json").read_text())["report"]["sources"] for folder in ("one", "all")]
    assert [len(found) for found in sources] == [1, 3]


def test_folders_alone_are_no_files(typed: Typed) -> None:
    Path("in/a").mkdir(parents=True)
    shutil.copy("rows.txt", "in/a/rows.txt")
    for kind in ("criteo", "text", "imagenet"):
        _, error = typed(kind, "--input", "in/*", "--output", "s")
        assert "in/*: only folders match this pattern, such as in/a. Name the files in them: 'in/**/*'." in error


def test_options_are_explained_in_plain_words(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    out, _ = typed("text", "--help")
    assert "Vocabulary size, special tokens included. [24006; from 5 to 1048576]" in out
    assert "Approximate number of sentences used to train the tokenizer." in out


def test_options_out_of_their_bounds_are_refused(typed: Typed) -> None:
    _, error = typed("text", "--input", "text.jsonl.gz", "--output", "s", "--vocabulary", "3")
    assert error == "error: vocabulary=3: expected a number from 5 to 1048576.\n"
    _, error = typed("imagenet", "--input", "images", "--output", "s", "--validation-fraction", "1")
    assert error == "error: validation_fraction=1.0: expected a number from 0 to below 1.\n"
    assert not list(Path().glob("s*"))


def test_the_text_preparation_has_an_earlier_name(typed: Typed) -> None:
    first, _ = typed(*TEXT, "--output", "s")
    assert first.startswith("s: prepared\n")
    again, _ = typed("commoncrawl", *TEXT[1:], "--output", "s")
    assert again.startswith("s: was prepared already by the same command\n")


def test_progress_off_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(prepare_progress, "PLAIN_SECONDS", 0.0)
    with PrepareProgress() as rows:
        rows("unpack", 3_000_000, 12_000_000, {})
        rows("read", 6_000_000, 12_000_000, {"rows": 4321})
    with PrepareProgress(speed=True) as text:
        text("read", 5, 0, {"documents": 7})
        text("tokenizer", 0, 0, {})
        text("encode", 1, 4, {"documents": 1234, "tokens": 56_789})
    assert capsys.readouterr().err.splitlines() == [
        "unpacking 25 % of 12 MB",
        "reading 50 % of 12 MB, 4,321 rows",
        "reading 7 documents",
        "training the tokenizer",
        "encoding 25 % 1,234 documents; 56,789 tokens",
    ]


def test_lines_that_end_in_carriage_returns_alone(typed: Typed) -> None:
    for name, data in (("a.txt", Path("rows.txt").read_bytes()), ("b.txt", Path("rows.txt").read_bytes() * 30)):
        Path(name).write_bytes(data.replace(b"\n", b"\r"))
        Path(f"{name}.gz").write_bytes(gzip.compress(data.replace(b"\n", b"\r")))
        for file in (name, f"{name}.gz"):
            _, error = typed("criteo", "--input", file, "--output", "s")
            assert f"{file}: its lines end in CR alone" in error
            assert "tr '\\r' '\\n'" in error
