"""The readers, the embedded sample and the batches."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitbranch.cli.main import main
from bitbranch.data import Dataset, cifar10, fashion_mnist, folders, normalize, prepared
from bitbranch.data.batches import Batches
from bitbranch.data.dataset import evenly
from bitbranch.data.folders import PictureBatches, random_view
from bitbranch.data.idx import read_idx, write_idx_xz
from bitbranch.data.unpacked import unpack
from bitbranch.errors import InputError
from bitbranch.training import config, tasks

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


def test_a_folder_of_other_sets_does_not_hide_the_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "installed"
    for folder in (tmp_path / "sets" / "cifar10", installed):
        folder.mkdir(parents=True)
    write_idx_xz(installed / "t10k-images-idx3-ubyte.xz", np.zeros((4, 28, 28), np.uint8))
    write_idx_xz(installed / "t10k-labels-idx1-ubyte.xz", np.zeros(4, np.uint8))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", installed)
    monkeypatch.setenv("BITBRANCH_DATA", str(tmp_path / "sets"))
    assert len(fashion_mnist.load("test", full=True)) == 4


def test_a_missing_folder_or_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    monkeypatch.setenv("BITBRANCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"BITBRANCH_DATA: no folder .*nowhere"):
        fashion_mnist.load("train", full=True)
    monkeypatch.setenv("BITBRANCH_DATA", str(tmp_path))
    with pytest.raises(InputError, match="has no file train-images-idx3-ubyte"):
        fashion_mnist.load("train", full=True)
    monkeypatch.delenv("BITBRANCH_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
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


@pytest.mark.parametrize(("total", "count"), [(100, 60), (100, 51), (292, 200), (12000, 5000), (7, 7), (5, 9), (9, 0)])
def test_a_part_is_spread_over_the_whole(total: int, count: int) -> None:
    """Sets may lie class by class: of each tenth, a part has as much."""
    indices = evenly(total, count)
    taken = min(total, count)
    assert len(indices) == taken and indices.tolist() == sorted(set(indices.tolist()))
    if taken:
        assert set(np.diff(indices)) <= {total // taken, -(-total // taken)}
        in_order = Dataset(
            np.zeros((total, 1, 2, 2), np.uint8),
            np.arange(total) * 10 // total,
            tuple("abcdefghij"),
            (0.5,),
            (0.25,),
            "",
        )
        shares = np.bincount(in_order.spread(count).labels, minlength=10)
        assert shares.max() - shares.min() <= 2  # of tenths that differ by one


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


# CIFAR-10 and pictures


def cifar_records(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, count)
    return images, labels, b"".join(bytes([y]) + x.tobytes() for x, y in zip(images, labels, strict=True))


@pytest.fixture
def cifar_binary(tmp_path: Path) -> Path:
    """The original archive, of few images."""
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for i, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
            data = cifar_records(4, i)[2]
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return tmp_path / "cifar-10-binary.tar.gz"


def test_cifar10_is_read_from_the_original_binary_files(cifar_binary: Path, tmp_path: Path) -> None:
    cifar10.prepare(cifar_binary, tmp_path / "prepared")
    with tarfile.open(cifar_binary) as archive:
        archive.extractall(tmp_path / "plain", filter="data")
    for folder in (tmp_path / "prepared", tmp_path / "plain", tmp_path / "plain" / "cifar-10-batches-bin"):
        train, test = (cifar10.load(split, folder) for split in ("train", "test"))
        expected = [cifar_records(4, i) for i in range(6)]
        assert np.array_equal(train.images, np.concatenate([e[0] for e in expected[:5]]))
        assert train.labels.tolist() == [y for e in expected[:5] for y in e[1]]
        assert np.array_equal(test.images, expected[5][0])
    (tmp_path / "plain" / "cifar-10-batches-bin" / "data_batch_3.bin").write_bytes(b"\x01" * 100)
    with pytest.raises(InputError, match="not made of records of 3073 bytes"):
        cifar10.load("train", tmp_path / "plain")


def picture_folders(root: Path, classes: tuple[str, ...], splits: tuple[str, ...], size: int, count: int) -> None:
    rng = np.random.default_rng(1)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:04}.png")


def test_cifar10_is_read_from_folders_and_decoded_once(tmp_path: Path) -> None:
    picture_folders(tmp_path, cifar10.CLASSES, ("train", "test"), 32, 2)
    first = cifar10.load("train", tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "train" / "bird" / "0001.png"))
    assert np.array_equal(first.images[5].transpose(1, 2, 0), pixels) and first.labels[5] == 2
    shutil.rmtree(tmp_path / "train")
    assert np.array_equal(cifar10.load("train", tmp_path).images, first.images)
    archive = tmp_path / "pictures.tar.xz"
    picture_folders(tmp_path / "again", cifar10.CLASSES, ("train", "test"), 32, 2)
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "again", "cifar10")
    assert main(["data", "cifar10", "--prepare", str(archive)]) == 0


def test_an_archive_of_another_set_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITBRANCH_DATA", str(tmp_path / "data"))
    archive = tmp_path / "masks.tar"
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_bytes(b"")
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "train", "train")
    for _ in range(2):
        assert main(["data", "bccd", "--prepare", str(archive)]) == 2
        assert f"bccd: {archive} does not hold it (" in capsys.readouterr().err
    assert not list((tmp_path / "data").glob("*"))


def test_cifar10_lacking_a_file_is_named(
    cifar_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(cifar_binary) as archive:
        archive.extractall(tmp_path / "data" / "cifar10", filter="data")
    inner = tmp_path / "data" / "cifar10" / "cifar-10-batches-bin"
    (inner / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"lacks data_batch_4\.bin$"):
        cifar10.prepare(inner, tmp_path / "prepared")
    assert main(["data", "cifar10"]) == 0
    assert "not usable: " in (said := capsys.readouterr().out) and "data_batch_4.bin" in said


def test_prepared_test_pictures_are_those_of_one_folder(tmp_path: Path) -> None:
    """Of ``test`` and ``val``, ``test``; and two files of one name are not one."""
    picture_folders(tmp_path, ("a", "b"), ("train", "test"), 4, 2)
    picture_folders(tmp_path, ("a", "b"), ("val",), 4, 3)
    splits, classes = prepared.from_pictures(tmp_path)
    assert classes == ("a", "b") and [len(splits[s][1]) for s in ("train", "test")] == [4, 4]
    first = np.asarray(Image.open(tmp_path / "test" / "a" / "0000.png"))
    assert np.array_equal(splits["test"][0][0].transpose(1, 2, 0), first)
    shutil.rmtree(tmp_path / "test")
    assert len(prepared.from_pictures(tmp_path)[0]["test"][1]) == 6
    picture_folders(tmp_path / "more", ("a",), ("train",), 4, 1)
    with pytest.raises(InputError, match=r"0000\.png: another train/a/0000\.png is there, too"):
        prepared.from_pictures(tmp_path)


def test_test_pictures_have_the_numbers_of_the_classes_that_are_learned(tmp_path: Path) -> None:
    """A class without test pictures moves no other; one that is not learned is an error; hidden folders are none."""
    picture_folders(tmp_path, ("a", "b", "c"), ("train",), 4, 2)
    picture_folders(tmp_path, ("b", "c"), ("val",), 4, 2)
    (tmp_path / "train" / ".checkpoints").mkdir()
    plain = {"network": {"model": "vgg"}, "data": {"set": "imagenet", "path": str(tmp_path)}}
    task = tasks.read(config.parse(plain).data)
    assert task.train.classes == task.test.classes == ("a", "b", "c")
    assert task.test.labels.tolist() == [1, 1, 2, 2] and task.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(InputError, match=r"data\.shift: is for sets of small images"):
        next(iter(tasks.read(config.parse({**plain, "data": {**plain["data"], "shift": 3}}).data).batches(0)))
    (tmp_path / "val" / "d").mkdir()
    with pytest.raises(InputError, match=r"classes that are not learned: d$"):
        tasks.read(config.parse(plain).data)


def test_an_archive_keeps_what_lies_beside_its_folder(tmp_path: Path) -> None:
    def packed(name: str, *files: str) -> Path:
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for file in files:
                member = tarfile.TarInfo(file)
                member.size = len(file)
                tar.addfile(member, io.BytesIO(file.encode()))
        return tmp_path / f"{name}.tar"

    def contents(name: str) -> set[str]:
        root = tmp_path / name
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}

    for name, files, wanted in (
        ("beside", ("LICENSE", "set/a/1", "set/2"), {"LICENSE", "a/1", "2"}),
        ("plain", ("set/a/1", "set/set/2"), {"a/1", "set/2"}),
        ("taken", ("a", "set/a"), {"a", "set/a"}),
        ("several", ("one/1", "two/2"), {"one/1", "two/2"}),
    ):
        said: list[str] = []
        unpack(packed(name, *files), tmp_path / name, said.append)
        assert contents(name) == wanted and said == [f"{tmp_path / name}: {len(files)} files"]


@pytest.fixture(autouse=True)
def own_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "cifar" in request.node.name or "prepare" in request.node.name:
        monkeypatch.setenv("BITBRANCH_DATA", str(tmp_path / "data"))


@pytest.mark.parametrize("kind", ["missing", "not an archive", "cut off", "of something else"])
def test_what_cannot_be_prepared_is_named(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.tar.xz"
    if kind == "not an archive":
        source.write_bytes(b"hello")
    elif kind != "missing":
        picture_folders(tmp_path / "p", ("cat", "dog"), ("train", "test"), 32, 2)
        with tarfile.open(source, "w:xz") as tar:
            tar.add(tmp_path / "p", "cifar10")
        if kind == "cut off":
            source.write_bytes(source.read_bytes()[:2000])
    assert main(["data", "cifar10", "--prepare", str(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bitbranch: error: ") and str(source) in error and error.count("\n") == 1
    assert not (tmp_path / "data" / "cifar10" / "classes.json").exists()


def test_pictures_in_folders(tmp_path: Path) -> None:
    picture_folders(tmp_path, ("a", "b"), ("train", "val"), 40, 5)
    train, test = (folders.load(split, tmp_path, size=28) for split in ("train", "test"))
    assert train.classes == ("a", "b") and train.labels.tolist() == [0] * 5 + [1] * 5 and train.shape == (3, 28, 28)
    plain, helped = (PictureBatches(train, size=4, seed=3, workers=workers) for workers in (0, 2))
    parts = [PictureBatches(train, size=4, seed=3, part=(i, 2)) for i in range(2)]
    epochs = []
    for _ in range(2):
        for (x, y), (u, v), *split in zip(plain, helped, *parts, strict=True):
            assert x.shape == (4, 3, 28, 28) and torch.equal(x, u) and torch.equal(y, v)
            assert all(torch.equal(x[i::2], split[i][0]) for i in range(2))
            epochs.append(x)
    assert len(epochs) == 4 and not torch.equal(epochs[0], epochs[2])
    ((x, y),) = list(PictureBatches(test, size=100, training=False))
    picture = Image.open(test.paths[7]).resize((32, 32), Image.Resampling.BILINEAR).crop((2, 2, 30, 30))
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
    expected = (pixels - np.array(test.mean)[:, None, None]) / np.array(test.std)[:, None, None]
    assert y.tolist() == test.labels.tolist() and np.abs(x[7].numpy() - expected).max() < 1e-5
    Path(train.paths[0]).write_bytes(b"broken")
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"a/0000.png: not a readable picture") as caught:
            list(PictureBatches(train, size=10, workers=workers))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [(9, 16, 2, 8), (7, 6, 3, 6), (5, 9, 4, 4), (2, 8, 4, 2)])
def test_parts_of_training_batches_are_equal(given: tuple[int, int, int, int]) -> None:
    images, size, processes, expected = given
    few = dataset(images)
    parts = [Batches(few, size=size, part=(i, processes)) for i in range(processes)]
    assert {part.size for part in parts} == {expected}
    if expected % processes == 0:
        assert {len(x) for part in parts for x, _ in part} == {expected // processes}
    tested = [Batches(few, size=size, training=False, part=(i, processes)) for i in range(processes)]
    assert sum(len(x) for part in tested for x, _ in part) == images


def test_random_views_stay_within_the_published_ranges() -> None:
    """Of a picture whose pixels say where they are."""
    y, x = np.mgrid[0:200, 0:250]
    picture = Image.fromarray(np.stack([y, x, 0 * x], 2).astype(np.uint8))
    flipped = 0
    for seed in range(200):
        view = np.asarray(random_view(picture, 64, np.random.default_rng(seed), flip=True), np.float64)
        height = (view[-1, 0, 0] - view[0, 0, 0]) * 64 / 63
        width = abs(view[0, -1, 1] - view[0, 0, 1]) * 64 / 63
        flipped += view[0, -1, 1] < view[0, 0, 1]
        assert 0.06 <= height * width / (200 * 250) <= 1.05
        assert 0.68 <= width / height <= 1.45
    assert 70 < flipped < 130
    long = Image.fromarray(np.zeros((10, 400, 3), np.uint8))
    assert random_view(long, 32, np.random.default_rng(0), flip=True).size == (32, 32)
