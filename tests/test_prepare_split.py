"""Which part a row, a document, an image falls to: never none of a part, and with --like to the parts that are asked for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_prepare_criteo as criteo
import test_prepare_imagenet as images
import test_prepare_text as text

from odist.data.images import ImageStore
from odist.data.rows import RowStore
from odist.data.tokens import TokenStore
from odist.errors import Interrupted, UserError
from odist.prepare.images.prepare import ImageOptions, prepare_imagenet
from odist.prepare.options import draw
from odist.prepare.text.clean import document_key
from odist.prepare.text.prepare import TextOptions, prepare_text

# Rows


@pytest.mark.parametrize("split", ["time", "random"])
@pytest.mark.parametrize("share", [1e-12, 0.05, 0.5, 0.999999])
@pytest.mark.parametrize("count", [2, 3])
def test_few_rows_reach_both_parts(tmp_path: Path, split: str, share: float, count: int) -> None:
    rows = criteo.make_rows(count)
    (tmp_path / "rows").write_bytes(criteo.text_of(rows))
    report = criteo.prepare(tmp_path / "rows", tmp_path / "s", split=split, validation_fraction=share, block_bytes=300)
    assert min(report.rows.values()) >= 1
    both = np.concatenate([criteo.split_rows(tmp_path / "s", part) for part in ("train", "validation")])
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(criteo.reference_rows(rows), axis=0))
    again = criteo.prepare(tmp_path / "rows", tmp_path / "t", split=split, validation_fraction=share)
    assert again.fingerprint == report.fingerprint


def test_the_row_that_was_nearest_falls(tmp_path: Path) -> None:
    rows = criteo.make_rows(40)
    (tmp_path / "rows").write_bytes(criteo.text_of(rows))
    key = criteo.splitmix64(3)
    nearest = min(range(40), key=lambda row: criteo.splitmix64((key + row) % 2**64))
    criteo.prepare(tmp_path / "rows", tmp_path / "s", split="random", validation_fraction=1e-9, split_seed=3)
    np.testing.assert_array_equal(
        criteo.split_rows(tmp_path / "s", "validation"), criteo.reference_rows([rows[nearest]])
    )


def test_one_row_is_not_divided(tmp_path: Path) -> None:
    (tmp_path / "row").write_bytes(criteo.text_of(criteo.make_rows(1)))
    for split in ("time", "random"):
        with pytest.raises(UserError, match="one row cannot be divided"):
            criteo.prepare(tmp_path / "row", tmp_path / "s", split=split)
    assert criteo.prepare(tmp_path / "row", tmp_path / "s", validation_fraction=0.0).rows == {
        "train": 1,
        "validation": 0,
    }
    assert criteo.prepare(tmp_path / "row", tmp_path / "t", like=tmp_path / "s").rows == {"train": 0, "validation": 1}


def test_a_moved_border_survives_interruptions(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(criteo.text_of(criteo.make_rows(30)))
    options = criteo.CriteoOptions(buckets=97, split="random", validation_fraction=1e-9, block_bytes=2000)
    criteo.prepare_criteo([str(tmp_path / "rows")], output=tmp_path / "whole", options=options)
    for calls in range(0, 24, 3):
        output = tmp_path / f"{calls}"
        try:
            criteo.prepare_criteo([str(tmp_path / "rows")], output=output, options=options, stop=criteo.After(calls))
        except Interrupted:
            criteo.prepare_criteo([str(tmp_path / "rows")], output=output, options=options)
        assert criteo.contents(output) == criteo.contents(tmp_path / "whole")


# Documents


def prepare_texts(
    output: Path, texts: list[str], *, stop: Callable[[], bool] | None = None, **options: Any
) -> TokenStore:
    path = text.write_json(output.with_suffix(".jsonl.gz"), texts)
    text.prepare(output, path, stop=stop, **options)
    return TokenStore.open(output)


@pytest.mark.parametrize("share", [1e-9, 0.2, 1 - 1e-9])
@pytest.mark.parametrize("seed", range(3))
def test_two_documents_reach_both_parts(tmp_path: Path, share: float, seed: int) -> None:
    texts = [text.story(1), text.story(2)]
    options = {"validation_fraction": share, "split_seed": seed, "duplicates": "documents"}
    store = prepare_texts(tmp_path / "s", [*texts, texts[0]], **options)
    assert (store.num_documents("train"), store.num_documents("validation")) == (1, 1)
    turned = prepare_texts(tmp_path / "t", texts[::-1], **options)
    assert text.texts_of(turned, "validation") == text.texts_of(store, "validation")


def test_a_part_that_duplicates_leave_empty_gets_a_document(tmp_path: Path) -> None:
    train = text.texts_of(prepare_texts(tmp_path / "all", [text.story(seed) for seed in range(9)]), "train")
    lines = [line for document in train for line in document.split("\n")]
    # the only validation document, every paragraph of which stands in training documents before it
    rng = random.Random(0)
    repeated = next(
        document
        for document in (rng.sample(lines, k=4) for _ in range(100))
        if draw(document_key(document), seed=0) < 0.2
    )
    store = prepare_texts(tmp_path / "s", [*train, "\n".join(repeated)])
    assert (store.num_documents("train"), store.num_documents("validation")) == (len(train) - 1, 1)


def test_one_document_is_not_divided(tmp_path: Path) -> None:
    for texts in ([text.story(1)], [text.story(1)] * 3):
        with pytest.raises(UserError, match="one document is left"):
            prepare_texts(tmp_path / "s", texts)
    store = prepare_texts(tmp_path / "s", [text.story(1)], validation_fraction=0.0)
    assert (store.num_documents("train"), store.num_documents("validation")) == (1, 0)


def test_moved_documents_survive_interruptions(tmp_path: Path) -> None:
    path = text.write_json(tmp_path / "a.jsonl.gz", [text.story(seed) for seed in range(6)])
    text.prepare(tmp_path / "whole", path, validation_fraction=1e-9)
    for attempt in range(60):
        left = iter(range(1 + attempt))
        try:
            text.prepare(
                tmp_path / "s", path, validation_fraction=1e-9, stop=lambda left=left: next(left, None) is None
            )  # type: ignore[misc]
            break
        except Interrupted:
            continue
    for name in ("train.bin", "validation.bin", "tokenizer.model"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# Images


@pytest.mark.parametrize("share", [1e-9, 0.05, 1 - 1e-9])
@pytest.mark.parametrize("decode", [None, 8])
def test_two_images_reach_both_parts(tmp_path: Path, share: float, decode: int | None) -> None:
    content = {f"n1/{i}.jpg": images.encode(images.pixels(i)) for i in range(2)}
    content["n1/again.jpg"] = content["n1/0.jpg"]
    root = images.write_folder(tmp_path / "images", content)
    report = images.prepare(tmp_path / "s", root, validation_fraction=share, decode=decode)
    assert sorted(report.images.values()) == [1, 2]
    store = ImageStore.open(tmp_path / "s")
    if decode is None:
        train, validation = images.stored(store, "train"), images.stored(store, "validation")
        assert not train.keys() & validation.keys()
        assert set(train) | set(validation) == {("n1", data) for data in content.values()}
    assert (
        report.fingerprint == images.prepare(tmp_path / "t", root, validation_fraction=share, decode=decode).fingerprint
    )


def test_one_image_is_not_divided(tmp_path: Path) -> None:
    data = images.encode(images.pixels(0))
    root = images.write_folder(tmp_path / "images", {"n1/a.jpg": data, "n1/b.jpg": data})
    with pytest.raises(UserError, match="two different ones at least"):
        images.prepare(tmp_path / "s", root)
    assert images.prepare(tmp_path / "s", root, validation_fraction=0.0).images == {"train": 2, "validation": 0}


def test_a_moved_image_survives_interruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from odist.prepare.images import prepare as imagenet

    monkeypatch.setattr(imagenet, "PIECE_IMAGES", 4)
    root = images.write_folder(
        tmp_path / "images", {f"n{i % 2}/{i}.jpg": images.encode(images.pixels(i)) for i in range(14)}
    )
    images.prepare(tmp_path / "whole", root, validation_fraction=1e-9)
    for calls in range(40):
        left = iter(range(1 + calls))
        try:
            images.prepare(
                tmp_path / "s", root, validation_fraction=1e-9, stop=lambda left=left: next(left, None) is None
            )
            break
        except Interrupted:
            continue
    assert calls > 3
    assert images.contents(tmp_path / "s") == images.contents(tmp_path / "whole")


# Like another store, with training rows


@pytest.mark.parametrize("split", ["time", "random"])
@pytest.mark.parametrize("min_count", [0, 3])
def test_rows_of_a_new_day_like_those_of_the_old(tmp_path: Path, split: str, min_count: int) -> None:
    rows = criteo.make_rows(300)
    (tmp_path / "day1").write_bytes(criteo.text_of(rows[:200]))
    (tmp_path / "day2").write_bytes(criteo.text_of(rows[200:]))
    criteo.prepare(tmp_path / "day1", tmp_path / "old", min_count=min_count)
    report = criteo.prepare(
        tmp_path / "day2", tmp_path / "new", like=tmp_path / "old", validation_fraction=0.3, split=split
    )
    old, new = RowStore.open(tmp_path / "old"), RowStore.open(tmp_path / "new")
    assert new.fitted_fingerprint == old.fitted_fingerprint
    assert new.fitted == old.fitted
    assert report.rows == {"train": 70, "validation": 30} or split == "random"
    assert min(report.rows.values()) > 0
    # the same rows mean the same, whichever part they are in
    criteo.prepare(tmp_path / "day2", tmp_path / "all", like=tmp_path / "old")
    both = np.concatenate([criteo.split_rows(tmp_path / "new", part) for part in ("train", "validation")])
    expected = criteo.split_rows(tmp_path / "all", "validation")
    np.testing.assert_array_equal(both[np.lexsort(both.T)], expected[np.lexsort(expected.T)])


def test_text_of_a_new_day_like_that_of_the_old(tmp_path: Path) -> None:
    old = prepare_texts(tmp_path / "old", [text.story(seed) for seed in range(20)])
    later = text.write_json(tmp_path / "later.jsonl.gz", [text.story(seed) for seed in range(20, 40)])
    options = TextOptions(processes=1, validation_fraction=0.3, split_seed=5)
    report = prepare_text([str(later)], output=tmp_path / "new", like=tmp_path / "old", options=options)
    new = TokenStore.open(tmp_path / "new")
    assert new.fitted_fingerprint == old.fitted_fingerprint
    assert min(report.documents.values()) > 0
    assert text.all_texts(new) == sorted(text.story(seed) for seed in range(20, 40))
    with pytest.raises(UserError, match=r"split_seed: with --like every row.*--validation-fraction"):
        prepare_text([str(later)], output=tmp_path / "x", like=tmp_path / "old", options=TextOptions(split_seed=1))


def folder_of(root: Path, classes: list[str], *, first: int) -> Path:
    content = {
        f"{name}/{i}.jpg": images.encode(images.pixels(first + i * len(classes) + n))
        for n, name in enumerate(classes)
        for i in range(10)
    }
    return images.write_folder(root, content)


def like(folder: Path, name: str, *inputs: Path | str, **options: Any) -> ImageStore:
    prepare_imagenet(
        [str(path) for path in inputs],
        output=folder / name,
        like=folder / "old",
        options=ImageOptions(processes=1, **options),
    )
    return ImageStore.open(folder / name)


def test_images_of_a_new_day_like_those_of_the_old(tmp_path: Path) -> None:
    images.prepare(tmp_path / "old", folder_of(tmp_path / "first", ["ant", "bee", "cat"], first=0), decode=8)
    later = folder_of(tmp_path / "later", ["bee", "cat"], first=1000)
    old = ImageStore.open(tmp_path / "old")
    new = like(tmp_path, "new", later, validation_fraction=0.3)
    assert (new.fitted_fingerprint, new.classes, new.decoded) == (old.fitted_fingerprint, ["ant", "bee", "cat"], 8)
    assert min(new.num_rows(part) for part in ("train", "validation")) > 0
    assert {*new.labels("train").tolist(), *new.labels("validation").tolist()} == {1, 2}
    held_out = like(tmp_path, "held out", later)
    assert (held_out.num_rows("train"), held_out.num_rows("validation")) == (0, 20)
    parts = images.write_folder(
        tmp_path / "parts",
        {"train/bee/a.jpg": images.encode(images.pixels(1)), "val/cat/b.jpg": images.encode(images.pixels(2))},
    )
    assert like(tmp_path, "parts1", parts).num_rows("validation") == 2
    assert like(tmp_path, "parts2", parts, validation_fraction=0.5).labels("train").tolist() == [1]


def test_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    images.prepare(tmp_path / "old", folder_of(tmp_path / "first", ["ant", "bee"], first=0))
    for classes in (["ant", "dog"], ["dog", "emu"]):
        with pytest.raises(UserError, match=r"'dog'.* is not among the 2 classes of .*old"):
            like(tmp_path, "new", folder_of(tmp_path / "-".join(classes), classes, first=100))
    with pytest.raises(UserError, match="decode=8 contradicts"):
        like(tmp_path, "new", tmp_path / "first", decode=8)
    with pytest.raises(UserError, match="split_seed: with --like"):
        like(tmp_path, "new", tmp_path / "first", split_seed=1)


def test_a_data_set_like_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images.prepare(tmp_path / "old", folder_of(tmp_path / "first", ["ant", "bee", "cat"], first=0))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "bee"])})
    rows = [{"image": {"bytes": images.encode(images.pixels(500 + i)), "path": None}, "label": i % 2} for i in range(8)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "set"))
    store = like(tmp_path, "new", f"datasets:{tmp_path / 'set'}")
    assert sorted(store.labels("validation").tolist()) == [1] * 4 + [2] * 4


def test_stores_of_before_keep_their_fingerprints(tmp_path: Path) -> None:
    """Where no part was empty, nothing moved: these are what earlier versions gave."""
    (tmp_path / "rows").write_bytes(criteo.text_of(criteo.make_rows(60)))
    found = {
        "time": criteo.prepare(tmp_path / "rows", tmp_path / "a").fingerprint,
        "random": criteo.prepare(tmp_path / "rows", tmp_path / "b", split="random").fingerprint,
        "like": criteo.prepare(tmp_path / "rows", tmp_path / "c", like=tmp_path / "a").fingerprint,
    }
    rng = random.Random(0)
    store = prepare_texts(
        tmp_path / "d", [" ".join(rng.choices(text.WORDS, k=30)) + "." for _ in range(50)], language="any"
    )
    for split in ("train", "validation"):
        found[split] = json.loads((tmp_path / "d" / "store.json").read_text())["splits"][split]["sha256"]
    assert store.num_documents("validation") > 3
    assert {name: value[:16] for name, value in found.items()} == FINGERPRINTS


FINGERPRINTS = {
    "time": "4569d9d819f24e57",
    "random": "db96749055a73047",
    "like": "c6d491d36cca5524",
    "train": "3b436cbad6775896",
    "validation": "471cb9cc1b680f6c",
}
