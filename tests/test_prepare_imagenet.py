"""The image preparation: every layout gives the same rows, every kind of bad input is counted or refused."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import kill_and_continue
from PIL import ExifTags, Image

from odist.data.images import ImageStore
from odist.errors import Interrupted, UserError
from odist.prepare.images import prepare as imagenet
from odist.prepare.images.prepare import ImageOptions, ImageReport, prepare_imagenet

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
CLASSES = ["n01", "n02", "n10"]
VALIDATION = {"n01": 2, "n02": 1, "n10": 3}


def pixels(number: int, *, height: int = 10, width: int = 12) -> np.ndarray:
    """A smooth image that no other number gives."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + channel) + number) + np.cos(y / (2 + channel) - number / 3) for channel in range(3)]
    return ((np.stack(waves, axis=-1) + 2) * 63).astype(np.uint8)


def encode(array: np.ndarray, kind: str = "JPEG", *, mode: str | None = None, **options: Any) -> bytes:
    output = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(output, kind, **options)
    return output.getvalue()


def files() -> dict[str, bytes]:
    """train/CLASS/... and val/CLASS/..., by path."""
    found, number = {}, 0
    for part, sizes in (("train", dict.fromkeys(CLASSES, 7)), ("val", VALIDATION)):
        for name, size in sizes.items():
            for _ in range(size):
                found[f"{part}/{name}/{part}_{number:04d}.JPEG"] = encode(pixels(number))
                number += 1
    return found


def write_folder(root: Path, content: dict[str, bytes]) -> Path:
    for path, data in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def tar_bytes(content: dict[str, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for path, data in content.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return output.getvalue()


def prepare(output: Path, *inputs: Path | str, **options: Any) -> ImageReport:
    options = {"processes": 1, **options}
    stop = options.pop("stop", None)
    return prepare_imagenet([str(path) for path in inputs], output=output, options=ImageOptions(**options), stop=stop)


def stored(store: ImageStore, split: str) -> Counter[tuple[str, bytes]]:
    labels = store.labels(split)
    return Counter((store.classes[labels[i]], store.jpeg(split, i)) for i in range(store.num_rows(split)))


def given(content: dict[str, bytes], part: str) -> Counter[tuple[str, bytes]]:
    return Counter((path.split("/")[1], data) for path, data in content.items() if path.startswith(part))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "store.json"}


# Layouts


def layout(name: str, tmp_path: Path) -> tuple[list[Path | str], dict[str, Any]]:
    """The same images, as they come from different places: inputs and options."""
    content = files()
    if name == "folder":
        return [write_folder(tmp_path / "images", content)], {}
    if name == "test part":
        return [write_folder(tmp_path / "images", {p.replace("val/", "test/"): d for p, d in content.items()})], {}
    if name == "folder in a folder":
        return [write_folder(tmp_path / "images", {f"a/b/{path}": data for path, data in content.items()})], {}
    if name == "two folders":
        root = write_folder(tmp_path / "images", content)
        return [root / "train", root / "val"], {}
    if name == "linked classes":
        root = write_folder(tmp_path / "images", content)
        (root / "val").rename(tmp_path / "elsewhere")
        (root / "val").symlink_to(tmp_path / "elsewhere")
        return [root], {}
    if name == "tar":
        (tmp_path / "images.tar").write_bytes(tar_bytes({f"./images/{p}": d for p, d in content.items()}))
        return [tmp_path / "images.tar"], {}
    if name == "tar.gz":
        import gzip

        (tmp_path / "images.tar.gz").write_bytes(gzip.compress(tar_bytes({f"x/{p}": d for p, d in content.items()})))
        return [tmp_path / "images.tar.gz"], {}
    if name in ("parquet", "saved data set"):
        return dataset_layout(name, tmp_path, content)
    return original_layout(name, tmp_path, content)


def dataset_layout(name: str, tmp_path: Path, content: dict[str, bytes]) -> tuple[list[Path | str], dict[str, Any]]:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    parts = {}
    for part, split in (("train", "train"), ("val", "validation")):
        rows = [
            {"image": {"bytes": data, "path": Path(path).name}, "label": path.split("/")[1]}
            for path, data in content.items()
            if path.startswith(part)
        ]
        parts[split] = datasets.Dataset.from_list(rows, features=features)
    folder = tmp_path / "set"
    if name == "saved data set":
        datasets.DatasetDict(parts).save_to_disk(str(folder))
    else:
        (folder / "data").mkdir(parents=True)
        for split, data in parts.items():
            data.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return [f"datasets:{folder}"], {}


def original_layout(name: str, tmp_path: Path, content: dict[str, bytes]) -> tuple[list[Path | str], dict[str, Any]]:
    """ILSVRC2012_img_train.tar of class tars, ILSVRC2012_img_val.tar of images, and a list of their classes."""
    train = {}
    for wnid in CLASSES:
        inner = {Path(p).name: d for p, d in content.items() if p.startswith(f"train/{wnid}/")}
        train[f"{wnid}.tar"] = tar_bytes(inner)
    validation = {Path(path).name: data for path, data in content.items() if path.startswith("val")}
    classes = {Path(path).name: path.split("/")[1] for path in content if path.startswith("val")}
    root = write_folder(tmp_path / "tars", {
        "ILSVRC2012_img_train.tar": tar_bytes(train),
        # as the devkit's list goes by name, the order in the archive must not matter
        "ILSVRC2012_img_val.tar": tar_bytes(dict(reversed(validation.items()))),
    })  # fmt: skip
    numbers = {"n10": 1, "n01": 2, "n02": 3}  # the devkit's numbers are in no order of names
    ordered = [classes[key] for key in sorted(classes)]
    truth, named, synsets = tmp_path / "truth.txt", tmp_path / "named.txt", tmp_path / "synsets.txt"
    truth.write_text("".join(f"{numbers[wnid]}\n" for wnid in ordered))
    named.write_text("".join(f"{key}\t{wnid}\t0\t0\t9\t9\n" for key, wnid in classes.items()))
    synsets.write_text("n10 a tench\nn01 a shark\nn02 a hen\n")
    both: list[Path | str] = [root / "ILSVRC2012_img_train.tar", root / "ILSVRC2012_img_val.tar"]
    if name == "original, ground truth":
        return both, {"labels": truth, "synsets": synsets}
    if name == "original, devkit":
        import scipy.io

        kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
        rows = [(number, wnid, 0) for wnid, number in numbers.items()] + [(4, "n99", 3)]
        scipy.io.savemat(tmp_path / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
        return both, {"labels": truth}
    if name == "original, names":
        return both, {"labels": named}
    if name == "original, Kaggle":
        solution = "".join(f"{Path(key).stem},{wnid} 0 0 9 9 {wnid} 1 1 5 5 \n" for key, wnid in classes.items())
        (tmp_path / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{solution}")
        return both, {"labels": tmp_path / "LOC_val_solution.csv"}
    assert name == "folder of the tars"
    return [root], {"labels": named}


LAYOUTS = ("folder", "test part", "folder in a folder", "two folders", "linked classes", "tar", "tar.gz", "parquet",
           "saved data set", "original, ground truth", "original, devkit", "original, names", "original, Kaggle",
           "folder of the tars")  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    inputs, options = layout(name, tmp_path)
    report = prepare(tmp_path / "store", *inputs, **options)
    store, content = ImageStore.open(tmp_path / "store"), files()
    assert store.classes == CLASSES
    assert (store.num_rows("train"), store.num_rows("validation")) == (21, 6)
    assert store.labels("train").dtype == np.int64
    assert stored(store, "train") == given(content, "train")
    assert stored(store, "validation") == given(content, "val")
    assert (report.files, report.kept, report.dropped) == (27, 27, {})
    if name in ("parquet", "saved data set"):  # every part's own bytes
        assert 1 <= report.input_bytes / sum(map(len, content.values())) < 1.5
    plain = prepare(tmp_path / "plain", write_folder(tmp_path / "plain-images", content))
    assert (report.fingerprint, report.fitted_fingerprint) == (plain.fingerprint, plain.fitted_fingerprint)
    for array in ("labels-train.npy", "labels-validation.npy", "classes.json"):
        assert (tmp_path / "store" / array).read_bytes() == (tmp_path / "plain" / array).read_bytes()


def test_a_share_is_drawn_where_there_is_no_validation_part(tmp_path: Path) -> None:
    content = {f"n{i % 4}/{i}.jpg": encode(pixels(i)) for i in range(200)}
    content |= {f"n{i % 4}/again-{i}.jpg": encode(pixels(i)) for i in range(0, 200, 5)}
    root = write_folder(tmp_path / "images", content)
    report = prepare(tmp_path / "s", root, validation_fraction=0.25)
    store = ImageStore.open(tmp_path / "s")
    train, validation = stored(store, "train"), stored(store, "validation")
    assert train + validation == Counter((path.split("/")[0], data) for path, data in content.items())
    assert not train.keys() & validation.keys()  # equal images lie in one part
    assert 30 <= report.images["validation"] <= 90
    assert report.duplicates == 40
    with_train = prepare(tmp_path / "t", write_folder(tmp_path / "other" / "train", content), validation_fraction=0.25)
    assert with_train.fingerprint == report.fingerprint
    other_seed = prepare(tmp_path / "u", root, validation_fraction=0.25, split_seed=1)
    assert stored(ImageStore.open(tmp_path / "u"), "validation") != validation
    assert other_seed.fingerprint != report.fingerprint
    none = prepare(tmp_path / "v", root, validation_fraction=0)
    assert none.images == {"train": 240, "validation": 0}
    assert ImageStore.open(tmp_path / "v").labels("validation").shape == (0,)


def test_the_start_of_a_split_is_a_sample_of_all_classes(tmp_path: Path) -> None:
    content = {f"train/n{i // 100}/{i}.jpg": encode(pixels(i, height=4, width=4)) for i in range(400)}
    prepare(tmp_path / "s", write_folder(tmp_path / "images", content), validation_fraction=0)
    for rows in (slice(0, 60), slice(-60, None)):
        assert Counter(ImageStore.open(tmp_path / "s").labels("train")[rows].tolist()).most_common()[-1][1] >= 5


# Images


def test_every_image_becomes_one_that_reads_as_rgb(tmp_path: Path) -> None:
    array = pixels(3, height=20, width=30)
    alpha = np.dstack([array, np.full((20, 30), 128, dtype=np.uint8)])
    kinds = {
        "rgb.jpg": encode(array, quality=90),
        "grey.jpg": encode(array, mode="L"),
        "cmyk.jpg": encode(array, mode="CMYK", quality=98),
        "rgb.png": encode(array, "PNG"),
        "named-wrongly.JPEG": encode(pixels(4, height=20, width=30), "PNG"),
        "alpha.png": encode(alpha, "PNG"),
        "palette.gif": encode(array, "GIF"),
    }
    root = write_folder(tmp_path / "images", {f"train/c/{name}": data for name, data in kinds.items()})
    report = prepare(tmp_path / "s", root, validation_fraction=0)
    assert (report.kept, report.grayscale) == (7, 1)
    assert report.converted == {"png": 3, "cmyk": 1, "gif": 1}
    store = ImageStore.open(tmp_path / "s")
    kept = [store.jpeg("train", i) for i in range(7)]
    assert {kinds["rgb.jpg"], kinds["grey.jpg"]} <= set(kept)  # byte for byte
    modes = Counter(Image.open(io.BytesIO(data)).mode for data in kept)
    assert modes == {"RGB": 6, "L": 1}
    assert {Image.open(io.BytesIO(data)).format for data in kept} == {"JPEG"}
    prepare(tmp_path / "cmyk", write_folder(tmp_path / "one", {"c/x.jpg": kinds["cmyk.jpg"]}), validation_fraction=0)
    back = np.asarray(Image.open(io.BytesIO(ImageStore.open(tmp_path / "cmyk").jpeg("train", 0))))
    assert np.abs(back.astype(int) - array).mean() < 6  # the colours, not their negative


def test_short_side(tmp_path: Path) -> None:
    content = {
        "c/wide.jpg": encode(pixels(1, height=60, width=90)),
        "c/high.jpg": encode(pixels(2, height=101, width=47)),
        "c/small.jpg": encode(pixels(3, height=30, width=200)),
        "c/grey.jpg": encode(pixels(4, height=80, width=80), mode="L"),
    }
    report = prepare(tmp_path / "s", write_folder(tmp_path / "images", content), short_side=40, validation_fraction=0)
    store = ImageStore.open(tmp_path / "s")
    images = [Image.open(io.BytesIO(store.jpeg("train", i))) for i in range(4)]
    assert {image.size for image in images} == {(60, 40), (40, 86), (200, 30), (40, 40)}
    assert report.resized == 3
    assert content["c/small.jpg"] in {store.jpeg("train", i) for i in range(4)}
    wide = next(image for image in images if image.size == (60, 40))
    expected = Image.open(io.BytesIO(content["c/wide.jpg"])).convert("L").resize((60, 40), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(wide.convert("L")).astype(int) - np.asarray(expected)).mean() < 1.5  # JPEG again


@pytest.mark.parametrize("options", [{}, {"short_side": 16}, {"decode": 16}], ids=["kept", "short_side", "decode"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("place", ["folder", "data set"])
def test_an_orientation_in_exif_data_is_not_applied(
    place: str, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    array, found = pixels(5, height=24, width=40), {}
    for name, extra in (("plain", {}), ("turned", {"exif": exif})):
        data = encode(array, kind, **extra)
        assert Image.open(io.BytesIO(data)).getexif().get(ExifTags.Base.Orientation) == (6 if extra else None)
        content, root = {f"{part}/n01/1.JPEG": data for part in ("train", "val")}, tmp_path / name
        root.mkdir()
        inputs = [write_folder(root, content)] if place == "folder" else dataset_layout("parquet", root, content)[0]
        prepare(tmp_path / f"{name}-store", *inputs, **options)
        store = ImageStore.open(tmp_path / f"{name}-store")
        if store.decoded:
            found[name] = store.pixels("train", np.array([0]))[0]
        else:
            found[name] = np.asarray(Image.open(io.BytesIO(store.jpeg("train", 0))))
    np.testing.assert_array_equal(found["turned"], found["plain"])


def test_decoded_store(tmp_path: Path) -> None:
    square, wide = pixels(1, height=16, width=16), pixels(2, height=32, width=64)
    content = {"train/a/1.png": encode(square, "PNG"), "train/b/2.png": encode(wide, "PNG"),
               "train/b/3.png": encode(square[::-1].copy(), "PNG", mode="L"), "val/a/4.png": encode(square.swapaxes(0, 1).copy(), "PNG")}  # fmt: skip
    prepare(tmp_path / "s", write_folder(tmp_path / "images", content), decode=16)
    store = ImageStore.open(tmp_path / "s")
    assert store.decoded == 16
    found = store.pixels("train", np.arange(3))
    assert (found.shape, found.dtype) == ((3, 16, 16, 3), np.uint8)
    labels = store.labels("train")
    assert labels.tolist().count(1) == 2
    np.testing.assert_array_equal(found[labels == 0][0], square)
    grey = np.asarray(Image.fromarray(square[::-1].copy()).convert("L").convert("RGB"))
    half = Image.fromarray(wide).resize((32, 16), Image.Resampling.BICUBIC).crop((8, 0, 24, 16))
    assert any(np.array_equal(image, grey) for image in found[labels == 1])
    assert any(np.array_equal(image, np.asarray(half)) for image in found[labels == 1])
    np.testing.assert_array_equal(store.pixels("validation", np.array([0]))[0], square.swapaxes(0, 1))
    np.testing.assert_array_equal(store.pixels("train", np.array([2, 0, 2])), found[[2, 0, 2]])
    with pytest.raises(IndexError, match="train has 3"):
        store.pixels("train", np.array([3]))
    with pytest.raises(TypeError, match="holds pixels"):
        store.jpeg("train", 0)


# Bad input

BAD = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"no image at all", "not an image"),
    "half.jpg": (encode(pixels(1, height=90, width=90))[:2000], "truncated"),
    "header.jpg": (encode(pixels(1))[:30], "truncated"),
    "half.png": (encode(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8), "PNG")[:900], "truncated"),
    "deep.png": (encode(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100, "PNG"), "unsupported"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    data, reason = BAD[name]
    root = write_folder(tmp_path / "images", {**files(), f"train/n01/{name}": data})
    with pytest.raises(UserError, match=rf"images/train/n01/{name}: {reason}: .*--bad skip") as caught:
        prepare(tmp_path / "s", root)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_bad_files_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    content = files()
    other = {"words.txt": b"n01 a fish", "train/n01/.DS_Store": b"x", "test/x.jpg": b"?", "train/stray.txt": b"?"}
    wrong = {f"train/n02/{name}": data for name, (data, _) in BAD.items()}
    report = prepare(tmp_path / "s", write_folder(tmp_path / "images", {**content, **other, **wrong}), bad="skip")
    reasons = Counter(reason for _, reason in BAD.values())
    expected = {**reasons, "hidden": 1, "outside a class folder": 2, "unused part": 1}
    assert report.dropped == expected
    assert report.files == len(content) + len(other) + len(wrong) == report.kept + sum(report.dropped.values())
    lines = [json.loads(line) for line in (tmp_path / "s" / "dropped.jsonl").read_text().splitlines()]
    listed = {entry["file"].removeprefix("images/"): entry["reason"] for entry in lines}
    assert listed == {**{f"train/n02/{name}": reason for name, (_, reason) in BAD.items()}, "words.txt": "outside a class folder",
                      "train/n01/.DS_Store": "hidden", "test/x.jpg": "unused part", "train/stray.txt": "outside a class folder"}  # fmt: skip
    assert len(report.dropped_located) == len(BAD)
    store = ImageStore.open(tmp_path / "s")
    assert stored(store, "train") == given(content, "train")
    assert store.fingerprint == prepare(tmp_path / "t", write_folder(tmp_path / "sound", content)).fingerprint


def test_unreadable_file(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", files())
    (root / "train" / "n01" / "gone.jpg").symlink_to(tmp_path / "nothing")
    assert prepare(tmp_path / "s", root, bad="skip").dropped == {"unreadable": 1}


def user_error(tmp_path: Path, *inputs: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "s", *inputs, **options)
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "s.partial").exists()
    return str(caught.value)


def test_messages_about_inputs(tmp_path: Path) -> None:
    content = files()
    root = write_folder(tmp_path / "images", content)
    assert "no input given" in user_error(tmp_path)
    assert "no such file" in user_error(tmp_path, tmp_path / "nothing")
    assert "named twice" in user_error(tmp_path, root, root)
    assert "not a tar archive" in user_error(tmp_path, root / "train/n01/train_0000.JPEG")
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in user_error(tmp_path, tmp_path / "empty")
    flat = write_folder(tmp_path / "flat", {"a.jpg": encode(pixels(0)), "b.jpg": encode(pixels(1))})
    assert "flat/a.jpg: an image in no class folder" in user_error(tmp_path, flat)
    extra = write_folder(tmp_path / "extra", {**content, "val/n77/x.jpg": encode(pixels(0))})
    assert "has class 'n77', which the training part has not" in user_error(tmp_path, extra)
    unsorted = write_folder(tmp_path / "unsorted", {"train/n01/x.jpg": encode(pixels(0)), "val/y.jpg": encode(pixels(1))})  # fmt: skip
    assert "val/y.jpg: an image in no class folder" in user_error(tmp_path, unsorted)
    data = tar_bytes({f"x/{path}": data for path, data in content.items()})
    for cut in (512 * 9, 512 * 9 + 100, 512 * 10 + 300, 512 * 11):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        assert "cut.tar: damaged or not whole" in user_error(tmp_path, tmp_path / "cut.tar")
    (tmp_path / "bad.tar").write_bytes(data[: 512 * 8] + b"?" * 2048 + data[512 * 12 :])
    assert "bad.tar: damaged or not whole" in user_error(tmp_path, tmp_path / "bad.tar")
    import gzip

    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(data)[:2000])
    assert "cut.tar.gz: truncated gzip" in user_error(tmp_path, tmp_path / "cut.tar.gz")
    loop = write_folder(tmp_path / "loop", content)
    (loop / "train" / "n01" / "again").symlink_to(loop)
    assert "it has no end" in user_error(tmp_path, loop)


def test_messages_about_labels(tmp_path: Path) -> None:
    inputs, options = layout("original, ground truth", tmp_path)
    labels, synsets = options["labels"], options["synsets"]
    assert "meta.mat, which says what they mean, is not beside it" in user_error(tmp_path, *inputs, labels=labels)
    assert "Give both" in user_error(tmp_path, *inputs, synsets=synsets)
    labels.write_text("1\n2\n")
    assert "2 labels for 6 images" in user_error(tmp_path, *inputs, labels=labels, synsets=synsets)
    labels.write_text("4\n" * 6)
    assert "label 4, but the classes are numbered from 1 to 3" in user_error(tmp_path, *inputs, labels=labels, synsets=synsets)  # fmt: skip
    labels.write_text("val_0021.JPEG n01\n")
    message = user_error(tmp_path, *inputs, labels=labels)
    assert "no label" in message
    assert "--bad skip" in message
    skipped = prepare(tmp_path / "skipped", *inputs, labels=labels, bad="skip")
    assert (skipped.images["validation"], skipped.dropped) == (1, {"no label": 5})
    labels.write_text("other.JPEG n01\n")
    assert "it names none of the images of the input" in user_error(tmp_path, *inputs, labels=labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "below 1"),
        ({"short_side": 2}, "from 8 to 4096"),
        ({"short_side": 64, "decode": 32}, "Leave one out"),
        ({"bad": "maybe"}, "refuse, skip"),
    ],
)
def test_messages_about_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in user_error(tmp_path, write_folder(tmp_path / "images", files()), **options)


def test_too_few_for_a_validation_part(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", {"c/1.jpg": encode(pixels(1))})
    assert "no image is left for the" in user_error(tmp_path, root)


# Interruptions


def many(root: Path, *, count: int = 300) -> Path:
    return write_folder(root, {f"n{i % 3}/{i}.jpg": encode(pixels(i, height=4, width=5)) for i in range(count)})


@pytest.mark.parametrize("decode", [None, 8])
def test_bytes_do_not_depend_on_processes_or_interruptions(
    decode: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = many(tmp_path / "images")
    options: dict[str, Any] = {"validation_fraction": 0.2, "decode": decode}
    whole = prepare(tmp_path / "whole", root, **options)
    monkeypatch.setattr(imagenet, "PIECE_IMAGES", 20)
    monkeypatch.setattr(imagenet, "ROUND_PIECES", 3)
    spread = prepare(tmp_path / "spread", root, **options, processes=2)
    messages = []
    for attempt in range(200):
        polls = iter(range(2 + attempt % 4))
        try:
            resumed = prepare(tmp_path / "resumed", root, **options, stop=lambda polls=polls: next(polls, None) is None)
            break
        except Interrupted as error:
            messages.append(str(error))
            assert not (tmp_path / "resumed").exists()
    kept = [int(message.split()[0]) for message in messages]
    assert kept == sorted(kept)
    assert len(set(kept)) > 5
    assert whole.fingerprint == spread.fingerprint == resumed.fingerprint
    assert contents(tmp_path / "whole") == contents(tmp_path / "spread") == contents(tmp_path / "resumed")
    names = {"labels-train.npy", "labels-validation.npy", "classes.json", "dropped.jsonl", "images-train.npy", "images-validation.npy"}  # fmt: skip
    if decode is None:
        names = {name.replace("images", "offsets") for name in names} | {"images-train.bin", "images-validation.bin"}
    assert set(contents(tmp_path / "whole")) == names


def test_killed_and_continued(tmp_path: Path) -> None:
    many(tmp_path / "images", count=1500)
    printed = kill_and_continue(
        "prepare", "imagenet", "--input", "images", "--output", "s", "--processes", "1",
        folder=tmp_path, once=tmp_path / "s.partial" / "work" / "000000.json",
    )  # fmt: skip
    assert "use it: odist train task=imagenet data=prepared data.path=s" in printed
    assert "1,421 training,        79 validation" in printed
    expected = prepare(tmp_path / "expected", tmp_path / "images")
    assert ImageStore.open(tmp_path / "s").fingerprint == expected.fingerprint


def test_done_is_reused_and_another_request_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", files())
    first = prepare(tmp_path / "s", root)
    again = prepare(tmp_path / "s", root)
    assert (again.reused, again.fingerprint, again.images) == (True, first.fingerprint, first.images)
    with pytest.raises(UserError, match=r"different: options.short_side \(None there, 64 here\)"):
        prepare(tmp_path / "s", root, short_side=64)
    (root / "train" / "n01" / "new.jpg").write_bytes(encode(pixels(99)))
    with pytest.raises(UserError, match="holds a store made otherwise; different: sources"):
        prepare(tmp_path / "s", root)


def test_command_line_refuses_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from odist.cli.prepare import prepare_app

    result = CliRunner().invoke(prepare_app, ["imagenet", "--output", str(tmp_path / "s")])
    assert isinstance(result.exception, UserError)
    assert "no input given" in str(result.exception)
    result = CliRunner().invoke(prepare_app, ["imagenet", "--dataset", str(tmp_path / "no"), "--output", str(tmp_path / "s")])  # fmt: skip
    assert isinstance(result.exception, UserError)
    assert "datasets cannot load it" in str(result.exception)


# Real images


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"real data not present: shared/data/{name}")
    return path


def test_real_grayscale_images(tmp_path: Path) -> None:
    path = shared("imagenet/imagenet-sample-grayscale.tar")
    report = prepare(tmp_path / "s", path, validation_fraction=0)
    assert (report.files, report.kept, report.grayscale, report.classes) == (12, 12, 12, 12)
    with tarfile.open(path) as archive:
        originals = Counter(archive.extractfile(member).read() for member in archive if member.isreg())  # type: ignore[union-attr]
    store = ImageStore.open(tmp_path / "s")
    assert Counter(store.jpeg("train", i) for i in range(12)) == originals


def test_real_imagenet_images(tmp_path: Path) -> None:
    report = prepare(tmp_path / "s", shared("imagenet/imagenet-sample.tar"), processes=2)
    assert report.images == {"train": 360, "validation": 72}
    assert (report.classes, report.dropped) == (72, {})
    store = ImageStore.open(tmp_path / "s")
    assert np.bincount(store.labels("train")).tolist() == [5] * 72
    assert np.bincount(store.labels("validation")).tolist() == [1] * 72


def test_real_tiny_imagenet(tmp_path: Path) -> None:
    wanted, content = ("n01443537", "n01629819"), {}
    with tarfile.open(shared("tiny-imagenet/tiny-imagenet-50.tar.gz"), "r|gz") as archive:  # two of its classes
        for member in archive:
            if member.isreg() and (member.name.endswith(".txt") or member.name.split("/")[2] in wanted):
                content[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    (tmp_path / "tiny.tar").write_bytes(tar_bytes(content))
    report = prepare(tmp_path / "s", tmp_path / "tiny.tar", decode=64)
    assert report.images == {"train": 666, "validation": 66}
    assert report.dropped == {"outside a class folder": 2}
    modes = Counter(Image.open(io.BytesIO(data)).mode for path, data in content.items() if path.endswith(".JPEG"))
    assert (report.resized, report.grayscale, report.kept) == (0, modes["L"], modes.total())
    store = ImageStore.open(tmp_path / "s")
    assert store.classes == list(wanted)
    originals = Counter(
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tobytes()
        for path, data in content.items()
        if "/val/" in path
    )
    assert Counter(image.tobytes() for image in store.pixels("validation", np.arange(66))) == originals


def test_names_that_are_no_text(tmp_path: Path) -> None:
    tar = tmp_path / "images.tar"
    content = {f"train/n0{i % 2}/{i}\udcff.JPEG": encode(pixels(i)) for i in range(20)}
    tar.write_bytes(tar_bytes({**content, "train/n00/bad\udcff.JPEG": b"x"}))
    report = prepare(tmp_path / "store", tar, bad="skip")
    assert (report.kept, report.dropped) == (20, {"not an image": 1})
    assert r"bad\udcff.JPEG" in (tmp_path / "store" / "dropped.jsonl").read_text().replace("\\\\", "\\")
    tar.write_bytes(tar_bytes({**content, "train/n\udcff/a.JPEG": encode(pixels(99))}))
    with pytest.raises(UserError, match="not UTF-8"):
        prepare(tmp_path / "other", tar)
