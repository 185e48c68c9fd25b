"""Image batches against Pillow, their randomness, and stores that are damaged."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from odist.data.augment import MEAN, STD, evaluation_batch, normalise, train_batch
from odist.data.images import ImageStore
from odist.data.jpeg import Box, find_decoder
from odist.errors import UserError
from odist.prepare.images.prepare import ImageOptions, prepare_imagenet

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def smooth(number: int, *, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (30 + 9 * channel) + number) + np.cos(y / (20 + 9 * channel) - number) for channel in range(3)]
    return ((np.stack(waves, axis=-1) + 2) * 63).astype(np.uint8)


def encode(array: np.ndarray, kind: str = "JPEG", *, mode: str = "RGB", **options: object) -> bytes:
    output = io.BytesIO()
    Image.fromarray(array).convert(mode).save(output, kind, **options)
    return output.getvalue()


def make_store(folder: Path, images: list[bytes], *, decode: int | None = None) -> ImageStore:
    """All images in both parts."""
    for number, data in enumerate(images):
        for part in ("train", "val"):
            (folder / part / "c").mkdir(parents=True, exist_ok=True)
            (folder / part / "c" / f"{number}.jpg").write_bytes(data)
    prepare_imagenet([str(folder)], output=folder / "store", options=ImageOptions(decode=decode, processes=1))
    return ImageStore.open(folder / "store")


SIZES = [(300, 400), (401, 333), (224, 224), (97, 400), (500, 60), (640, 480), (255, 257), (100, 100)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """JPEG of many sizes and kinds."""
    kinds: list[dict[str, object]] = [
        {}, {"subsampling": 0}, {"progressive": True}, {"quality": 95}, {"mode": "L"}, {"restart_marker_rows": 1},
        {"mode": "L", "progressive": True}, {"subsampling": 1}]  # fmt: skip
    images = [
        encode(smooth(number, height=height, width=width), **kind)  # type: ignore[arg-type]
        for number, ((height, width), kind) in enumerate(zip(SIZES, kinds, strict=True))
    ]
    return make_store(tmp_path_factory.mktemp("jpeg"), images)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """Sixty noise images of 16 pixels, decoded; no pixel is black."""
    rng = np.random.default_rng(0)
    images = [encode(rng.integers(1, 256, (16, 16, 3), dtype=np.uint8), "PNG") for _ in range(60)]
    return make_store(tmp_path_factory.mktemp("small"), images, decode=16)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    path = SHARED / "imagenet" / "imagenet-sample.tar"
    if not path.is_file():
        pytest.skip("real data not present: shared/data/imagenet/imagenet-sample.tar")
    folder = tmp_path_factory.mktemp("real")
    prepare_imagenet([str(path)], output=folder / "store", options=ImageOptions(processes=1))
    return ImageStore.open(folder / "store")


def to_pixels(batch: np.ndarray) -> np.ndarray:
    """float64 [n, size, size, 3] in 0 to 255."""
    assert batch.dtype == np.uint8
    return batch.astype(np.float64)


# Evaluation


@pytest.mark.parametrize("size", [224, 64])
def test_evaluation_against_pillow(store: ImageStore, size: int) -> None:
    ids = np.arange(len(SIZES))
    expected = []
    for id in ids:  # the published recipe, step by step
        image = Image.open(io.BytesIO(store.jpeg("validation", int(id)))).convert("RGB")
        short, wanted = min(image.size), {224: 256, 64: 73}[size]
        scale = wanted / short
        new = tuple(wanted if side == short else int(wanted * side / short) for side in image.size)
        image = image.resize(new, Image.Resampling.BILINEAR)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        expected.append((np.asarray(image.crop((left, top, left + size, top + size))), scale))
    exact = to_pixels(evaluation_batch(store, ids, size=size, decoder="pillow"))
    fast = to_pixels(evaluation_batch(store, ids, size=size, decoder="fast"))
    for pillow, quick, (image, _) in zip(exact, fast, expected, strict=True):
        np.testing.assert_allclose(pillow, image, atol=1e-3)
        assert np.abs(quick - image).mean() < 1.5
        assert np.abs(quick - image).max() < 25


def test_a_decoded_store_is_evaluated_as_it_is(small: ImageStore) -> None:
    ids = np.array([5, 0, 59, 5])
    batch = evaluation_batch(small, ids, size=16)
    assert (batch.shape, batch.dtype) == ((4, 16, 16, 3), np.uint8)
    np.testing.assert_allclose(to_pixels(batch), small.pixels("validation", ids), atol=1e-3)
    with pytest.raises(UserError, match=r"size=32: the images of .* are decoded at 16 pixels"):
        evaluation_batch(small, ids, size=32)


def test_normalised_images_have_the_mean_and_deviation_of_the_training_images_as_their_scale(small: ImageStore) -> None:
    pixels = small.pixels("validation", np.arange(8))
    images = normalise(torch.from_numpy(pixels))
    assert (images.shape, images.dtype, images.is_contiguous()) == ((8, 3, 16, 16), torch.float32, True)
    expected = ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-5)


# Training


def test_a_crop_depends_on_seed_and_image_alone(store: ImageStore) -> None:
    ids = np.arange(len(SIZES))
    for decoder in ("fast", "pillow"):
        whole = train_batch(store, ids, size=48, seed=7, decoder=decoder)
        assert (whole.shape, whole.dtype) == ((len(ids), 48, 48, 3), np.uint8)
        for threads in (2, 3, 11):
            np.testing.assert_array_equal(train_batch(store, ids, size=48, seed=7, decoder=decoder, num_threads=threads), whole)  # fmt: skip
        picked = np.array([6, 1, 1, 3])
        np.testing.assert_array_equal(train_batch(store, picked, size=48, seed=7, decoder=decoder), whole[picked])
        other = train_batch(store, ids, size=48, seed=8, decoder=decoder)
        assert all(not np.array_equal(one, two) for one, two in zip(other, whole, strict=True))
    assert train_batch(store, np.array([], dtype=np.int64), size=48, seed=7).shape == (0, 48, 48, 3)


@pytest.mark.parametrize("crop", ["shifted", "resized"])
def test_a_decoded_crop_depends_on_seed_and_image_alone(small: ImageStore, crop: str) -> None:
    ids = np.arange(60)
    whole = train_batch(small, ids, size=16, seed=3, crop=crop)
    np.testing.assert_array_equal(train_batch(small, ids[::-1], size=16, seed=3, crop=crop, num_threads=4), whole[::-1])
    np.testing.assert_array_equal(train_batch(small, ids[20:21], size=16, seed=3, crop=crop), whole[20:21])
    assert not np.array_equal(train_batch(small, ids, size=16, seed=4, crop=crop), whole)


def test_without_a_crop_training_images_are_those_of_an_evaluation(store: ImageStore, small: ImageStore) -> None:
    for images, size in ((store, 32), (small, 16)):
        ids = np.arange(4)
        expected = evaluation_batch(images, ids, size=size, split="train")
        np.testing.assert_array_equal(train_batch(images, ids, size=size, seed=3, crop="none"), expected)
        assert not np.array_equal(train_batch(images, ids, size=size, seed=3), expected)


def test_random_crops_are_those_of_the_recipe(tmp_path: Path) -> None:
    # Red tells the column, green the row, so the crop can be read off its corners.
    height, width, num = 200, 250, 400
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    store = make_store(tmp_path, [encode(image, quality=100, subsampling=0)])
    for decoder in ("fast", "pillow"):
        size = 32
        crops = np.concatenate([to_pixels(train_batch(store, np.array([0]), size=size, seed=seed, decoder=decoder)) for seed in range(num)])  # fmt: skip
        across = (crops[:, 16, -1, 0] - crops[:, 16, 0, 0]) * size / (size - 1)
        down = (crops[:, -1, 16, 1] - crops[:, 0, 16, 1]) * size / (size - 1)
        flipped = across < 0
        assert 0.4 < flipped.mean() < 0.6
        area, ratio = np.abs(across) * down / (height * width), np.abs(across) / down
        assert 0.06 < area.min() < 0.15
        assert 0.8 < area.max() < 1.05
        # Uniform before large crops of an unfitting ratio are drawn again: the mean lies below (0.08 + 1) / 2.
        assert 0.42 < area.mean() < 0.54
        assert 0.7 < ratio.min() < 0.8
        assert 1.25 < ratio.max() < 1.43
        left = np.minimum(crops[:, 16, 0, 0], crops[:, 16, -1, 0])
        right = np.maximum(crops[:, 16, 0, 0], crops[:, 16, -1, 0])
        top, bottom = crops[:, 0, 16, 1], crops[:, -1, 16, 1]
        for low, high in ((left, width - right), (top, height - bottom)):  # no side is favoured
            assert abs(low.mean() - high.mean()) < 12


def test_shifted_crops_against_a_slow_reading(small: ImageStore) -> None:
    ids = np.arange(60)
    images = small.pixels("train", ids)
    found = set()
    for seed in range(6):
        crops = to_pixels(train_batch(small, ids, size=16, seed=seed)).round().astype(np.uint8)
        for image, crop in zip(images, crops, strict=True):
            framed = np.zeros((24, 24, 3), dtype=np.uint8)
            framed[4:20, 4:20] = image
            places = [
                (top, left, flip)
                for top in range(9)
                for left in range(9)
                for flip in (1, -1)
                if np.array_equal(framed[top : top + 16, left : left + 16][:, ::flip], crop)
            ]
            assert len(places) == 1
            found.add(places[0])
    assert {place[0] for place in found} == {place[1] for place in found} == set(range(9))
    assert len(found) > 130  # of 162 places in 360 draws, about 144 are expected


def test_both_decoders_agree(store: ImageStore) -> None:
    ids = np.arange(len(SIZES))
    for seed in range(10):
        fast, pillow = (to_pixels(train_batch(store, ids, size=64, seed=seed, decoder=name)) for name in ("fast", "pillow"))  # fmt: skip
        assert np.abs(fast - pillow).mean() < 1.5


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_stopping_below_the_crop_changes_no_pixel(subsampling: int, progressive: bool) -> None:
    rng = np.random.default_rng(subsampling)
    noise = rng.integers(0, 256, (333, 210, 3), dtype=np.uint8)
    data = encode(noise, subsampling=subsampling, progressive=progressive)
    whole = np.asarray(Image.open(io.BytesIO(data)))
    decoder = find_decoder("fast")
    for top in (0, 1, 15, 16, 17, 100, 141):
        part = decoder.crop(data, Box(top, 10, 192, 192), size=192)  # no resize
        np.testing.assert_allclose(part.astype(int), whole[top : top + 192, 10:202], atol=2)


@pytest.mark.parametrize("name", ["fast", "pillow"])
def test_an_orientation_in_exif_data_is_not_applied(name: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    image, decoder = smooth(1, height=90, width=150), find_decoder(name)
    plain, turned = encode(image), encode(image, exif=exif)
    assert Image.open(io.BytesIO(turned)).getexif()[ExifTags.Base.Orientation] == 6
    assert decoder.shape(turned) == (90, 150)
    box = Box(7, 20, 60, 70)
    np.testing.assert_array_equal(decoder.crop(turned, box, size=32), decoder.crop(plain, box, size=32))
    np.testing.assert_array_equal(decoder.centre(turned, resize=40, size=32), decoder.centre(plain, resize=40, size=32))


def test_real_images_by_both_decoders(real: ImageStore) -> None:
    ids = np.arange(0, 360, 9)
    fast, pillow = (to_pixels(train_batch(real, ids, size=224, seed=1, decoder=name)) for name in ("fast", "pillow"))
    assert np.abs(fast - pillow).mean() < 2
    for left, right in zip(fast, pillow, strict=True):
        assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.98
    fast, pillow = (to_pixels(evaluation_batch(real, ids[:8], size=224, decoder=name)) for name in ("fast", "pillow"))
    assert np.abs(fast - pillow).mean() < 2


# Decoders


def test_without_the_fast_decoder_pillow_is_used(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow = train_batch(store, np.arange(4), size=32, seed=0, decoder="pillow")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    np.testing.assert_array_equal(train_batch(store, np.arange(4), size=32, seed=0), pillow)
    with pytest.raises(UserError, match=r"needs simplejpeg, which is not installed\. Type: pip install 'odist\[images\]'"):  # fmt: skip
        train_batch(store, np.arange(4), size=32, seed=0, decoder="fast")


def test_messages(store: ImageStore, small: ImageStore) -> None:
    ids = np.arange(2)
    with pytest.raises(UserError, match="expected one of auto, fast, pillow"):
        train_batch(store, ids, size=32, seed=0, decoder="gpu")
    with pytest.raises(UserError, match=r"task\.crop=diagonal: expected one of auto, resized, shifted"):
        train_batch(store, ids, size=32, seed=0, crop="diagonal")
    with pytest.raises(UserError, match=r"Type task\.crop=resized, or prepare it with --decode 32"):
        train_batch(store, ids, size=32, seed=0, crop="shifted")
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        train_batch(store, ids, size=32, seed=0, split="test")
    with pytest.raises(UserError, match=r"task\.size=20: .* decoded at 16 pixels\. Leave task\.size out"):
        train_batch(small, ids, size=20, seed=0)
    with pytest.raises(IndexError, match="split train has 8 images"):
        train_batch(store, np.array([8]), size=32, seed=0)
    with pytest.raises(TypeError, match="holds no pixels"):
        store.pixels("train", ids)


# Damaged stores


def test_damaged_stores_are_refused(tmp_path: Path) -> None:
    images = [encode(smooth(number, height=40, width=40)) for number in range(3)]
    make_store(tmp_path, images)
    path = tmp_path / "store"
    with pytest.raises(UserError, match=r"no such folder\. Make it with `odist prepare imagenet"):
        ImageStore.open(tmp_path / "none")
    with pytest.raises(UserError, match="not a prepared store"):
        ImageStore.open(tmp_path / "train")

    def refused(name: str, data: bytes | None, message: str) -> None:
        before = (path / name).read_bytes()
        (path / name).unlink()
        if data is not None:
            (path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            ImageStore.open(path)
        (path / name).write_bytes(before)

    blob = (path / "images-train.bin").read_bytes()
    refused("images-train.bin", None, "images-train.bin: damaged: the file is missing")
    refused("images-train.bin", blob[:-1], f"{len(blob) - 1:,} bytes instead of {len(blob):,}")
    refused("labels-train.npy", b"?", "no array file")
    refused("classes.json", b'["a", "b"]', "expected a list of 1 names")
    labels = io.BytesIO()
    np.save(labels, np.full(3, 4))
    refused("labels-train.npy", labels.getvalue(), r"a label outside \[0, 1\)")
    record = json.loads((path / "store.json").read_text())
    refused("store.json", json.dumps({**record, "format": "odist-rows-1"}).encode(), "expected 'odist-images-1'")
    assert ImageStore.open(path).num_rows("train") == 3
    (path / "images-train.bin").write_bytes(b"\0" * len(blob))
    for decoder in ("fast", "pillow"):
        with pytest.raises(UserError, match="image 1 of split train cannot be decoded"):
            train_batch(ImageStore.open(path), np.array([1]), size=32, seed=0, decoder=decoder)
