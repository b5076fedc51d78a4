"""The readers, the embedded sample and the batches."""

from __future__ import annotations

import gzip
import lzma
import time
from pathlib import Path

import numpy as np
import pytest

from bitbranch.data import Dataset, fashion_mnist, normalize
from bitbranch.data.batches import Batches
from bitbranch.data.idx import read_idx, write_idx_xz
from bitbranch.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 4), np.uint8)
IDX = bytes([0, 0, 8, 3, 0, 0, 0, 7, 0, 0, 0, 5, 0, 0, 0, 4]) + IMAGES.tobytes()


def dataset(count: int = 6, size: int = 5, classes: int = 3) -> Dataset:
    images = np.random.default_rng(1).integers(0, 256, (count, 1, size, size), np.uint8)
    return Dataset(images, np.arange(count) % classes, ("a", "b", "c")[:classes], (0.5,), (0.25,), "made up")


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_idx_files_are_read_plain_and_compressed(tmp_path: Path, suffix: str, pack: object) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(pack(IDX))  # type: ignore[operator]
    assert np.array_equal(read_idx(path, dimensions=3), IMAGES)


def test_idx_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.xz"
    size = write_idx_xz(path, IMAGES)
    assert size == path.stat().st_size
    assert np.array_equal(read_idx(path, dimensions=3), IMAGES)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a", IDX[:-1], "139 bytes of data"),
        ("a", IDX + b"0", "141 bytes of data"),
        ("a", IDX[:9], "not an idx file"),
        ("a", b"", "not an idx file"),
        ("a", b"\0\0\x0d" + IDX[3:], "not an idx file"),
        ("a", b"\0\0\x08\x01" + IDX[4:], "not an idx file"),
        ("a", b"\0\0\x08\x03" + b"\xff" * 12 + IDX[16:], "needs"),
        ("a.gz", gzip.compress(IDX)[:-9], "cannot be read"),
        ("a.gz", IDX, "cannot be read"),
        ("a.xz", lzma.compress(IDX)[:-20], "cannot be read"),
        ("a.xz", IDX, "cannot be read"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=text) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


def test_the_sample_is_balanced_small_and_quick_to_read() -> None:
    start = time.process_time()
    train, test = fashion_mnist.load("train"), fashion_mnist.load("test")
    assert time.process_time() - start < 1.5
    assert train.images.shape == (12_000, 1, 28, 28)
    assert test.images.shape == (2_000, 1, 28, 28)
    assert np.array_equal(np.bincount(train.labels), np.full(10, 1200))
    assert np.array_equal(np.bincount(test.labels), np.full(10, 200))
    assert sum(file.stat().st_size for file in fashion_mnist.SAMPLE.iterdir()) < 6_000_000
    assert "MIT License" in (fashion_mnist.SAMPLE / "LICENSE").read_text()


def test_the_full_set_is_found_by_the_variable_and_its_subfolder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "fashion-mnist"):
        folder.mkdir(exist_ok=True)
        count = 2 if folder == tmp_path else 3
        images, labels = np.zeros((count, 28, 28), np.uint8), np.zeros(count, np.uint8)
        monkeypatch.setenv("BITBRANCH_DATA", str(tmp_path))
        write_idx_xz(folder / "t10k-images-idx3-ubyte.xz", images)
        write_idx_xz(folder / "t10k-labels-idx1-ubyte.xz", labels)
        assert len(fashion_mnist.load("test", full=True)) == (3 if (tmp_path / "fashion-mnist").exists() else 2)


def test_a_missing_folder_or_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITBRANCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"BITBRANCH_DATA: no folder .*nowhere"):
        fashion_mnist.load("train", full=True)
    monkeypatch.setenv("BITBRANCH_DATA", str(tmp_path))
    with pytest.raises(InputError, match="has no file train-images-idx3-ubyte"):
        fashion_mnist.load("train", full=True)
    monkeypatch.delenv("BITBRANCH_DATA")
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(InputError, match="set BITBRANCH_DATA"):
        fashion_mnist.load("train", full=True)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="split 'valid'"):
        fashion_mnist.load("valid")


def test_normalize_is_the_formula_in_float32() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(2, axis=1)
    got = normalize(pixels, mean=(0.25, 0.5), std=(0.5, 0.3))
    for channel, (mean, std) in enumerate([(0.25, 0.5), (0.5, 0.3)]):
        expected = (pixels[:, channel].astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
        assert np.array_equal(got[:, channel], expected)
        assert got.dtype == np.float32


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.zeros((6, 1, 5, 5), np.float32)},
        {"images": np.zeros((6, 5, 5), np.uint8)},
        {"labels": np.zeros(5, np.int64)},
        {"labels": np.full(6, 3)},
        {"labels": np.full(6, -1)},
        {"mean": (0.5, 0.5)},
    ],
)
def test_a_dataset_that_does_not_fit_together_is_refused(change: dict[str, object]) -> None:
    good = vars(dataset())
    with pytest.raises(InputError, match="made up"):
        Dataset(**{**good, **change})  # type: ignore[arg-type]


def test_spread_takes_images_at_equal_distances() -> None:
    assert dataset(count=6).spread(3).labels.tolist() == [0, 2, 1]
    assert len(dataset(count=6).spread(100)) == 6


def test_batches_cover_the_set_once_in_a_new_order_and_repeat_by_seed() -> None:
    data = dataset(count=10)
    marked = Dataset(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), data.labels, data.classes, (0.0,), (1.0,), "m")
    batches = Batches(marked, size=3, seed=5)
    epochs = [[round(float(v) * 255) for x, _ in batches for v in x.flatten()] for _ in range(2)]
    assert len(batches) == 3
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]
    again = Batches(marked, size=3, seed=5)
    assert [round(float(v) * 255) for x, _ in again for v in x.flatten()] == epochs[0]


def test_shift_moves_by_at_most_so_many_pixels_and_lets_black_in() -> None:
    image = np.zeros((1, 1, 7, 7), np.uint8)
    image[0, 0, 3, 3] = 255
    one = Dataset(image, np.zeros(1, np.int64), ("a",), (0.5,), (0.25,), "dot")
    batches = Batches(one, size=1, shift=2, seed=0)
    places = set()
    for _ in range(200):
        ((x, _),) = list(batches)
        bright = np.argwhere(x[0, 0].numpy() > 0)
        assert len(bright) == 1
        assert (x[0, 0].numpy() < 0).sum() == 48  # black is -2 after normalisation
        places.add(tuple(int(i) for i in bright[0]))
    assert places == {(y, x) for y in range(1, 6) for x in range(1, 6)}


def test_flip_mirrors_about_half_of_the_images() -> None:
    image = np.zeros((100, 1, 2, 3), np.uint8)
    image[:, :, :, 0] = 255
    many = Dataset(image, np.zeros(100, np.int64), ("a",), (0.0,), (1.0,), "edge")
    ((x, _),) = list(Batches(many, size=100, flip=True, seed=0))
    left, right = x[:, 0, :, 0].amin(1), x[:, 0, :, 2].amin(1)
    assert (left + right == 1).all()
    assert 30 < int(right.sum()) < 70
