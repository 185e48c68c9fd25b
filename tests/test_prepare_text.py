"""The text preparation, end to end on real files and processes, and its steps against slow and obvious ones."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import random
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import kill_and_continue

from odist.data.tokens import TokenStore
from odist.errors import Interrupted, UserError
from odist.prepare.text.clean import sentences
from odist.prepare.text.prepare import TextOptions, TextReport, prepare_text
from odist.prepare.text.tokenizer import train_sentencepiece

REAL = Path(__file__).parent.parent.parent / "shared" / "data"
TEXT = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which
one you were all her she there would their we him been has when who will no more if out so what up said about than its
into them can only other time new some could these two may first then do any like my now over such our man me even most
made after also did many fore must through years where much your way down should because long each just state those
people too mister little world very year still see own work men day"""
WORDS = TEXT.split()


def story(seed: int, count: int = 12) -> str:
    """English-like text of `count` paragraphs, one a line, each of 60 to 90 words in sentences."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        left, text = rng.randint(60, 90), []
        while left > 0:
            size = rng.randint(5, 14)
            text.append(" ".join(rng.choices(WORDS, k=size)).capitalize() + rng.choice(".?!"))
            left -= size
        lines.append(" ".join(text))
    return "\n".join(lines)


def write_json(path: Path, texts: list[str]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    return path


def write_wet(path: Path, texts: list[str]) -> Path:
    records = [
        f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {len(text.encode())}\r\n\r\n{text}\r\n\r\n".encode()
        for text in texts
    ]
    path.write_bytes(b"".join(map(gzip.compress, records)))
    return path


def prepare(output: Path, *inputs: Any, stop: Callable[[], bool] | None = None, like: Path | None = None, **options: Any) -> TextReport:  # fmt: skip
    if like is None and "tokenizer" not in options:
        options = {"vocabulary": 120, "validation_fraction": 0.2} | options
    chosen = TextOptions(**{"processes": 1, **options})
    return prepare_text([str(item) for item in inputs], output=output, like=like, options=chosen, stop=stop)


def texts_of(store: TokenStore, split: str) -> list[str]:
    """The text of each document, decoded by sentencepiece itself: paragraphs by line."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(store.path / "tokenizer.model"))
    after = {store.special["sentence_end"]: " ", store.special["paragraph_end"]: "\n", store.special["document_end"]: ""}  # fmt: skip
    found, starts = [], store.document_starts(split)
    for start, stop in zip(starts[:-1], starts[1:], strict=True):  # noqa: RUF007
        text, held = "", []
        for token in store.tokens(split)[start:stop].tolist():
            if token in after:
                text += model.decode(held) + after[token]
                held = []
            else:
                held.append(token)
        assert held == []
        found.append(text)
    return found


def all_texts(store: TokenStore) -> list[str]:
    return sorted(texts_of(store, "train") + texts_of(store, "validation"))


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return [story(seed) for seed in range(30)]


def test_tokens_stand_for_the_text(tmp_path: Path, stories: list[str]) -> None:
    report = prepare(tmp_path / "s", write_json(tmp_path / "a.jsonl.gz", stories))
    store = TokenStore.open(tmp_path / "s")
    assert all_texts(store) == sorted(stories)
    assert store.vocabulary == 120
    for split in ("train", "validation"):
        assert store.num_documents(split) > 0
        assert store.num_bytes(split) == sum(len(text.encode()) + 1 for text in texts_of(store, split))
        ends = store.tokens(split)[np.asarray(store.document_starts(split)[1:]) - 1]
        assert set(ends.tolist()) == {store.special["document_end"]}
    counted = np.bincount(store.tokens("train"), minlength=120)
    assert store.unigram_counts().tolist() == counted.tolist()
    assert report.kept == report.records == 30
    assert report.tokens == {split: store.num_tokens(split) for split in ("train", "validation")}


def test_every_packing_gives_the_same_documents(tmp_path: Path, stories: list[str]) -> None:
    import zstandard

    rows = "".join(json.dumps({"text": text}) + "\n" for text in stories).encode()
    (tmp_path / "plain.json").write_bytes(rows)
    (tmp_path / "packed.jsonl.zst").write_bytes(zstandard.compress(rows[:5000]) + zstandard.compress(rows[5000:]))
    with tarfile.open(tmp_path / "books.tar.gz", "w:gz") as archive:
        for number, text in enumerate(stories):
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    files = [write_json(tmp_path / "a.jsonl.gz", stories), tmp_path / "plain.json", tmp_path / "packed.jsonl.zst",
             tmp_path / "books.tar.gz", write_wet(tmp_path / "a.warc.wet.gz", stories)]  # fmt: skip
    for number, file in enumerate(files):
        prepare(tmp_path / str(number), file)
        assert all_texts(TokenStore.open(tmp_path / str(number))) == sorted(stories), file


def test_a_saved_data_set(tmp_path: Path, stories: list[str]) -> None:
    import datasets

    datasets.Dataset.from_dict({"body": stories, "n": range(30)}).save_to_disk(str(tmp_path / "set"))
    prepare(tmp_path / "s", f"datasets:{tmp_path / 'set'}", field="body")
    assert all_texts(TokenStore.open(tmp_path / "s")) == sorted(stories)
    with pytest.raises(UserError, match="no column 'text'; it has body, n"):
        prepare(tmp_path / "t", f"datasets:{tmp_path / 'set'}")


def test_bytes_do_not_depend_on_processes_or_interruptions(tmp_path: Path, stories: list[str]) -> None:
    files = [write_json(tmp_path / f"{n}.jsonl.gz", stories[n::3] + stories[:4]) for n in range(3)]
    whole = prepare(tmp_path / "whole", *files)
    spread = prepare(tmp_path / "spread", *files, processes=2)
    messages = []
    for attempt in range(200):
        polls = iter(range(1 + attempt * 5 % 13))
        try:
            resumed = prepare(tmp_path / "resumed", *files, stop=lambda polls=polls: next(polls, None) is None)  # type: ignore[misc]
            break
        except Interrupted as error:
            messages.append(str(error))
            assert not (tmp_path / "resumed").exists()
    assert all("the same command continues" in message for message in messages)
    assert {message.split()[2] for message in messages} >= {"read;", "tokenizer;", "encode;"}
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == ["store.json", "tokenizer.model", "train.bin", "train.index.npy", "unigram.npy", "validation.bin",
                     "validation.index.npy"]  # fmt: skip
    for other, report in (("spread", spread), ("resumed", resumed)):
        assert report.fingerprint == whole.fingerprint
        for name in names[1:]:
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert whole.dropped == {"duplicate": 12}
    assert whole.records == whole.kept + sum(whole.dropped.values())


def test_killed_and_continued(tmp_path: Path, stories: list[str]) -> None:
    files = [write_json(tmp_path / f"{n}.jsonl.gz", stories[n::2]) for n in range(2)]
    inputs = [part for file in files for part in ("--input", str(file))]
    printed = kill_and_continue(
        "prepare", "commoncrawl", *inputs, "--output", "s", "--vocabulary", "120", "--validation-fraction", "0.2",
        "--processes", "1", folder=tmp_path, once=tmp_path / "s.partial" / "work" / "000000.read.json",
    )  # fmt: skip
    assert "use it: odist train task=lm data=prepared data.path=s" in printed
    assert "records      30 read, 30 kept" in printed
    expected = prepare(tmp_path / "expected", *files)
    assert TokenStore.open(tmp_path / "s").fingerprint == expected.fingerprint


def test_done_is_reused_and_another_request_refused(tmp_path: Path, stories: list[str]) -> None:
    file = write_json(tmp_path / "a.jsonl.gz", stories)
    first = prepare(tmp_path / "s", file)
    again = prepare(tmp_path / "s", file)
    assert (again.reused, again.fingerprint, again.sources) == (True, first.fingerprint, first.sources)
    with pytest.raises(UserError, match=r"different: options.vocabulary \(120 there, 130 here\)"):
        prepare(tmp_path / "s", file, vocabulary=130)


def test_the_split_stays_when_files_are_added(tmp_path: Path, stories: list[str]) -> None:
    first, second = (write_json(tmp_path / f"{n}.jsonl.gz", stories[n::2]) for n in range(2))
    prepare(tmp_path / "one", first)
    prepare(tmp_path / "two", second, first)
    one, two = TokenStore.open(tmp_path / "one"), TokenStore.open(tmp_path / "two")
    assert set(texts_of(one, "validation")) < set(texts_of(two, "validation"))
    assert set(texts_of(one, "train")) < set(texts_of(two, "train"))


def test_the_tokenizer_sees_the_training_part_only(tmp_path: Path, stories: list[str]) -> None:
    file = write_json(tmp_path / "a.jsonl.gz", stories)
    prepare(tmp_path / "all", file, vocabulary=200)
    store = TokenStore.open(tmp_path / "all")
    lines = [line for text in texts_of(store, "train") for line in text.split("\n")]
    model = train_sentencepiece([s for line in lines for s in sentences(line)], vocabulary=200)
    assert (tmp_path / "all" / "tokenizer.model").read_bytes() == model


def test_like_uses_the_other_tokenizer(tmp_path: Path, stories: list[str]) -> None:
    prepare(tmp_path / "s", write_json(tmp_path / "a.jsonl.gz", stories))
    report = prepare(tmp_path / "t", write_json(tmp_path / "b.jsonl.gz", [story(99)]), like=tmp_path / "s")
    store, other = TokenStore.open(tmp_path / "t"), TokenStore.open(tmp_path / "s")
    assert report.documents == {"train": 0, "validation": 1}
    assert texts_of(store, "validation") == [story(99)]
    assert store.fitted_fingerprint == other.fitted_fingerprint
    assert store.unigram_counts().tolist() == other.unigram_counts().tolist()
    with pytest.raises(UserError, match="vocabulary: with --like the tokenizer is that of"):
        prepare(tmp_path / "u", tmp_path / "b.jsonl.gz", like=tmp_path / "s", vocabulary=50)


def test_filters_and_faults_add_up(tmp_path: Path, stories: list[str]) -> None:
    german = "\n".join(["Der schnelle braune Fuchs springt über den faulen Hund und läuft dann weiter durch den Wald. " * 8] * 3)  # fmt: skip
    menu = "Home page of this web site\nAbout us and about what we do\nContact the people who run it\nSign in"
    short = "This is a short page with one sentence only."
    texts = [*stories, german, f"{menu}\n{story(50)}\n{menu}", menu, short, "\0\1\2" * 50, ""]
    report = prepare(tmp_path / "s", write_wet(tmp_path / "a.wet.gz", texts))
    assert (report.records, report.kept) == (36, 31)
    assert report.dropped == {"language not en": 1, "nothing but boilerplate": 1, "no long paragraph": 1, "binary": 1,
                              "empty": 1}  # fmt: skip
    assert story(50) in all_texts(TokenStore.open(tmp_path / "s"))
    bad = tmp_path / "bad.jsonl.gz"
    rows = [json.dumps({"text": text}) for text in stories]
    bad.write_bytes(gzip.compress("\n".join([*rows[:5], '{"text": ', *rows[5:], '{"body": "x"}']).encode())[:-20])
    report = prepare(tmp_path / "t", bad)
    assert report.damage["not JSON"] >= 1
    assert report.damage["truncated gzip"] == 1
    assert f"{bad}: line 6: not JSON" in report.damage_located
    assert report.records == report.kept + sum(report.dropped.values())
    with pytest.raises(UserError, match="line 6: not JSON"):
        prepare(tmp_path / "u", bad, damaged="refuse")
    assert not list(tmp_path.glob("u*"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_list_of_paths(tmp_path: Path, stories: list[str], web: str) -> None:
    write_wet(tmp_path / "web" / "0.warc.wet.gz", stories[:20])
    (tmp_path / "wet.paths.gz").write_bytes(gzip.compress(b"0.warc.wet.gz\n1.warc.wet.gz\n"))
    with pytest.raises(UserError, match=r"1\.warc\.wet\.gz: cannot be fetched.*404.*The same command"):
        prepare(tmp_path / "s", tmp_path / "wet.paths.gz", base_url=web)
    assert (tmp_path / "s.partial" / "work" / "000000.read.json").is_file()
    write_wet(tmp_path / "web" / "1.warc.wet.gz", stories[20:])
    prepare(tmp_path / "s", tmp_path / "wet.paths.gz", base_url=web)
    assert all_texts(TokenStore.open(tmp_path / "s")) == sorted(stories)
    prepare(tmp_path / "t", tmp_path / "wet.paths.gz", base_url=str(tmp_path / "web"))
    assert all_texts(TokenStore.open(tmp_path / "t")) == sorted(stories)


def test_what_cannot_be_meant_is_refused(tmp_path: Path, stories: list[str]) -> None:
    file = write_json(tmp_path / "a.jsonl.gz", stories)
    refused: list[tuple[str, dict[str, Any], list[Any]]] = [
        ("named twice", {}, [file, file]),
        ("no such file", {}, [tmp_path / "none"]),
        ("a folder", {}, [tmp_path]),
        ("too small for 24,006 pieces; it allows", {"vocabulary": 24006}, [file]),
        ("20 pieces are too few", {"vocabulary": 20}, [file]),
        ("expected any, or one of", {"language": "xx"}, [file]),
        ("from 0 to below 1", {"validation_fraction": 1.0}, [file]),
        ("no document is left", {"language": "de"}, [file]),
        ("not a sentencepiece model", {"tokenizer": file}, [file]),
    ]
    for message, options, inputs in refused:
        with pytest.raises(UserError, match=message):
            prepare(tmp_path / "s", *inputs, **options)
        assert not list(tmp_path.glob("s*"))


def test_a_wordpiece_vocabulary_is_refused(tmp_path: Path, stories: list[str]) -> None:
    file = write_json(tmp_path / "a.jsonl.gz", stories)
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\n##s\n")
    with pytest.raises(UserError, match=r"vocab\.txt: a WordPiece vocabulary, which is no longer read"):
        prepare(tmp_path / "s", file, tokenizer=tmp_path / "vocab.txt")
    prepare(tmp_path / "old", file)
    record = json.loads((tmp_path / "old" / "store.json").read_text())
    record["tokenizer"] = {"kind": "wordpiece", "file": "vocab.txt", "sha256": "", "lower": True}
    (tmp_path / "old" / "store.json").write_text(json.dumps(record))
    assert TokenStore.open(tmp_path / "old").vocabulary == 120  # training goes on
    with pytest.raises(UserError, match="its tokenizer is a WordPiece vocabulary"):
        prepare(tmp_path / "s", file, like=tmp_path / "old")
    assert not list(tmp_path.glob("s*"))


def test_real_common_crawl_files(tmp_path: Path) -> None:
    folder = REAL / "commoncrawl"
    if not folder.is_dir():
        pytest.skip("real data not present: shared/data/commoncrawl")
    files = sorted(folder.rglob("*.gz"))
    before = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    report = prepare(tmp_path / "s", *files, vocabulary=600, validation_fraction=0.2)
    assert report.records == report.kept + sum(report.dropped.values()) == 287
    assert report.damage == {"wrong Content-Length": 39, "invalid UTF-8": 2, "truncated record": 1}
    by_name = {Path(source["name"]).name: source for source in report.sources}
    assert by_name["sample.wet.gz"]["records"] == 69
    # The second copy of the same 16 documents, in another packing, adds nothing.
    assert by_name["filter_test_1.part1.warc.wet.gz"]["kept"] == 0
    assert by_name["filter_test_1.part1.single-member.wet.gz"]["kept"] > 9
    assert {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files} == before
