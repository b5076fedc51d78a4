"""Detection and segmentation from a configuration to pictures: runs, tables, reports and the two commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bitbranch import models
from bitbranch.cli import demo_scenes
from bitbranch.cli import pictures as cli_pictures
from bitbranch.cli.main import main
from bitbranch.data.scenes import scenes
from bitbranch.errors import InputError
from bitbranch.table import command, spec
from bitbranch.training import checkpoint, config, runner, tasks
from bitbranch.training.loop import Training
from bitbranch.vision import Detector, Segmenter

torch.set_num_threads(1)

DATA = {"batch": 16, "train_images": 64, "test_images": 12}
NETWORKS: dict[str, dict[str, Any]] = {
    "boxes": {"model": "ssd", "arguments": {"trunk": "vgg_small", "width": 0.125, "extras": 1}},
    "masks": {"model": "unet", "arguments": {"base": 8, "depth": 2}},
}
CLASSIFIER = {"model": "vgg", "arguments": {"stages": [[4], [4]]}}
FIGURES = {"boxes": "map", "masks": "miou"}


def configuration(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "network": NETWORKS[kind], "data": {"set": f"scene-{kind}", **DATA}, "threads": 1, "log_every": 2,
        "train": {"epochs": 1, "lr": 2e-3}, **more,
    }  # fmt: skip


TABLE = """
name = "Scenes"

[common]
threads = 1
network = {{model = "{model}", arguments = {arguments}}}
data = {{set = "scene-{kind}", batch = 16, train_images = 64, test_images = 12}}
train = {{epochs = 1, lr = 2e-3}}

[[row]]
name = "float"

[[row]]
name = "two steps"
network = {{start = "{{run:float}}", scheme = "tsq:wt-a2"}}
phase = [{{kind = "codes"}}, {{kind = "transforms", images = 16, samples = 500}}, {{}}]
"""
ARGUMENTS = {"boxes": '{trunk = "vgg_small", width = 0.125, extras = 1}', "masks": "{base = 8, depth = 2}"}


@pytest.fixture(scope="module", params=["boxes", "masks"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """A table of a float network and of one that went both steps."""
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    text = TABLE.format(model=NETWORKS[kind]["model"], kind=kind, arguments=ARGUMENTS[kind])
    (folder / "scenes.toml").write_text(text)
    options = command.Options(folder / "scenes.toml", folder, measure=False)
    return kind, folder, command.run(options, lambda _: None)


def test_tables_of_every_task(finished: tuple[str, Path, Any]) -> None:
    kind, folder, document = finished
    assert document["figure"] == FIGURES[kind] and not document["failed"]
    reference, low = (row["runs"][0] for row in document["rows"])
    assert low["images"] == 12 and low["differ"] == 0 and low["bytes"] == (folder / _net(low)).stat().st_size
    assert 0 <= low[FIGURES[kind]] <= 1 and reference["not compiled"] == "float"
    assert low[FIGURES[kind]] == pytest.approx(low["torch"], abs=1e-6)
    assert f"{FIGURES[kind]} %" in (folder / "table.md").read_text()


def _net(run: dict[str, Any]) -> str:
    return f"runs/two-steps-{run['seed']}/net.bb"


def test_reports_show_images_side_by_side(finished: tuple[str, Path, Any]) -> None:
    kind, folder, _ = finished
    html = (folder / "runs" / "two-steps-0" / "report.html").read_text()
    assert html.count("data:image/png") == 3 * tasks.SHOWN  # truth, float, low-bit
    for title in ("truth", "float", "tsq:wt-a2", f"test {FIGURES[kind]} %"):
        assert f">{title}<" in html
    assert (folder / "runs" / "float-0" / "report.html").read_text().count("data:image/png") == 2 * tasks.SHOWN


def test_compiled_files_say_what_they_are_for(finished: tuple[str, Path, Any]) -> None:
    kind, folder, _ = finished
    file = folder / "runs" / "two-steps-0" / "net.bb"
    right, wrong = (Detector, Segmenter) if kind == "boxes" else (Segmenter, Detector)
    assert right(file).classes[-1] == "ankle boot"
    with pytest.raises(InputError, match=r"net\.bb: a network for (detection|segmentation), not for"):
        wrong(file)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Scenes as picture files of two sizes, with one that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    files = []
    for i, image in enumerate(scenes("test", 2, size=64).images):
        files.append(folder / f"scene{i}.png")
        picture = Image.fromarray(image.transpose(1, 2, 0))
        (picture if i else picture.resize((150, 90))).save(files[-1])
    (folder / "broken.jpg").write_bytes(b"no picture")
    return [*files, folder / "broken.jpg"]


def test_the_commands_draw_list_and_go_on(
    finished: tuple[str, Path, Any], pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, folder, _ = finished
    name = "detect" if kind == "boxes" else "segment"
    more = ["--threshold", "0.02"] if kind == "boxes" else []
    net = str(folder / "runs" / "two-steps-0" / "net.bb")
    arguments = [name, net, *map(str, [*pictures, pictures[0]]), "--out", str(tmp_path), *more]
    assert main([*arguments, "--json"]) == 2
    said = capsys.readouterr()
    assert "broken.jpg: not a readable picture" in said.err
    result = json.loads(said.out)
    assert [row["picture"] for row in result["pictures"]] == ["scene0.png", "scene1.png", "scene0-2.png"]
    listed = json.loads((tmp_path / ("detections.json" if kind == "boxes" else "segments.json")).read_text())
    assert listed == result["pictures"] and (listed[0]["width"], listed[0]["height"]) == (150, 90)
    for row in listed:
        drawn = np.asarray(Image.open(tmp_path / row["picture"]))
        if kind == "boxes":
            assert drawn.shape == (row["height"], row["width"], 3)
            for thing in row["objects"]:
                x0, y0, x1, y1 = thing["box"]
                assert 0 <= x0 <= x1 <= row["width"] and 0 <= y0 <= y1 <= row["height"]
        else:
            mask = np.asarray(Image.open(tmp_path / f"{Path(row['picture']).stem}-mask.png"))
            assert mask.shape == (row["height"], row["width"]) and mask.max() <= 10
            assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-3)
            assert drawn.shape[0] > row["height"]  # the legend
    if kind == "boxes":
        assert any(row["objects"] for row in listed)
    before = pictures[0].read_bytes()
    assert main([name, net, str(pictures[0]), "--out", str(pictures[0].parent)]) == 0
    assert pictures[0].read_bytes() == before and (pictures[0].parent / "scene0-2.png").is_file()


def test_the_commands_overwrite_nothing_but_their_own(
    finished: tuple[str, Path, Any], pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, folder, _ = finished
    name = "detect" if kind == "boxes" else "segment"
    net = str(folder / "runs" / "two-steps-0" / "net.bb")
    Image.new("RGB", (8, 8)).save(tmp_path / "scene1.png")
    before = (tmp_path / "scene1.png").read_bytes()
    for _ in range(2):
        assert main([name, net, str(pictures[1]), "--out", str(tmp_path)]) == 0
        assert (tmp_path / "scene1.png").read_bytes() == before
    masks = {"scene1-2-mask.png"} if kind == "masks" else set()
    listing = "detections.json" if kind == "boxes" else "segments.json"
    assert {p.name for p in tmp_path.iterdir()} == {"scene1.png", "scene1-2.png", listing, *masks}
    long = tmp_path / f"{'n' * 251}.png"
    long.write_bytes(pictures[1].read_bytes())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scene0.png").mkdir()
    arguments = [name, net, *map(str, [long, *pictures[:2]]), "--out", str(tmp_path / "out")]
    assert main(arguments) == (0 if kind == "boxes" else 2)  # a mask's name is still longer
    assert (tmp_path / "out" / "scene0-2.png").is_file() and (tmp_path / "out" / "scene1.png").is_file()
    if kind == "boxes":
        capsys.readouterr()
        kept = (tmp_path / listing).read_bytes()
        assert main([*arguments[:-1], str(tmp_path), "--threshold", "2"]) == 2
        assert capsys.readouterr().err.count("threshold and overlap are 0..1") == 1
        assert (tmp_path / listing).read_bytes() == kept
        np.save(tmp_path / "x.npy", np.zeros((2, 3, 64, 64), np.uint8))
        assert main(["run", net, str(tmp_path / "x.npy"), "--out", str(tmp_path / "y.npy")]) == 2
        assert "4 outputs; write them with --out FILE.npz" in capsys.readouterr().err
        assert main(["run", net, str(tmp_path / "x.npy"), "--out", str(tmp_path / "y.npz")]) == 0
        with np.load(tmp_path / "y.npz") as several:
            assert len(several.files) == 4 and all(len(several[name]) == 2 for name in several.files)


def test_pictures_come_upright_and_of_sixteen_bits(
    finished: tuple[str, Path, Any], pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, folder, _ = finished
    net = folder / "runs" / "two-steps-0" / "net.bb"
    plain = Image.open(pictures[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    plain.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    grey = np.asarray(plain.convert("L"))
    Image.fromarray(grey).save(tmp_path / "eight.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    if kind == "boxes":
        detector = Detector(net)
        found = [detector(p, threshold=0.02) for p in (pictures[0], tmp_path / "turned.png")]
        found += [detector(tmp_path / f"{name}.png", threshold=0.02) for name in ("eight", "sixteen")]
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[2], found[3])
        np.testing.assert_array_equal(found[0], detector(np.asarray(plain), threshold=0.02))
        with pytest.raises(InputError, match=r"a picture is uint8 \[H, W, 3\], got float32"):
            detector(np.zeros((4, 4, 3), np.float32))
        return
    segmenter = Segmenter(net)
    np.testing.assert_array_equal(segmenter(pictures[0]), segmenter(np.asarray(plain)))
    np.testing.assert_array_equal(segmenter(pictures[0]), segmenter(tmp_path / "turned.png"))
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        segmenter(tmp_path / "nowhere")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    files = [pictures[0], *(tmp_path / n for n in ("turned.png", "eight.png", "sixteen.png", "float.tiff"))]
    out = tmp_path / "out"
    assert main(["segment", str(net), *map(str, files), "--out", str(out)]) == 2
    assert "bitbranch: error:" in (said := capsys.readouterr().err) and "float.tiff: a picture of 32 bits" in said
    masks = [np.asarray(Image.open(out / f"{p.stem}-mask.png")) for p in files[:-1]]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[2], masks[3])


def test_the_commands_need_no_torch(finished: tuple[str, Path, Any], pictures: list[Path], tmp_path: Path) -> None:
    kind, folder, _ = finished
    arguments = ["detect" if kind == "boxes" else "segment", str(folder / "runs" / "two-steps-0" / "net.bb")]
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['onnx'] = None\nfrom bitbranch.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments, str(pictures[1]), "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("boxes", {"network": {"model": "unet"}}, "UNet has no default boxes, so it detects nothing"),
        ("boxes", {"data": {"set": "scene-boxes", "augmentation": {"zoom": 2}}}, "data.augmentation.zoom: unknown key"),
        ("boxes", {"data": {"set": "scene-boxes", "augmentation": {"flip": 2}}}, "augmentation.flip: expected true or"),
        ("masks", {"data": {"set": "scene-masks", "size": [64, 48]}}, "images are square"),
        ("masks", {"data": {"set": "scene-masks", "size": [64]}}, "data.size is height and width"),
        ("masks", {"data": {"set": "scene-masks", "balance": 1.5}}, "data.balance is 0..1"),
        ("masks", {"data": {"set": "cifar10", "size": [64, 64]}}, "cifar10 has images of one size"),
        (
            "masks",
            {"network": CLASSIFIER, "data": {"set": "fashion-mnist-sample", "augmentation": {"flip": False}}},
            "data.augmentation: is for pictures with boxes or masks",
        ),
        ("boxes", {"data": {"set": "bccd", "path": "nowhere"}}, "nowhere: has no Annotations"),
        (
            "boxes",
            {"data": {"set": "fashion-mnist-sample"}},
            "SSD gives 2 outputs for an image of fashion-mnist-sample",
        ),
        ("boxes", {"data": {"set": "scene-masks"}}, "SSD gives 2 outputs for an image of scene-masks"),
        ("masks", {"data": {"set": "fashion-mnist-sample"}}, "UNet gives logits [10, 28, 28] for an image"),
        (
            "masks",
            {"network": {"model": "unet", "arguments": {"base": 8, "depth": 7}}},
            "does not take the images (3, 64",
        ),
        (
            "masks",
            {"network": {"model": "unet", "arguments": {"base": 8, "depth": 2, "num_classes": 3}}},
            "UNet gives logits [3, 64, 64] for an image of scene-masks; segmentation needs logits [11, 64, 64]",
        ),
        ("masks", {"network": {**NETWORKS["masks"], "layers": {"nothing.*": "w8a8"}}}, "'nothing.*' matches no layer"),
        ("boxes", {"data": {"set": "scene-boxes", "balance": 0.5}}, "data.balance: is for pictures with masks"),
        ("masks", {"seed": -1}, "seed must be at least 0"),
        ("masks", {"threads": -1}, "threads must be at least 0"),
        ("masks", {"data": {"set": "scene-masks", "workers": -1}}, "data.workers must be at least 0"),
        ("masks", {"train": {"portions": 0.5}}, "portions is a list"),
        (
            "masks",
            {"network": {"model": "unet", "start": "~nobody-here/x"}},
            "~nobody-here/x: Could not determine home",
        ),
        ("boxes", {"network": {"model": "ssd", "arguments": {"width": "a"}}}, "model 'ssd': "),
        ("masks", {"data": {"set": "camvid", "path": "nowhere"}}, "nowhere: no split 'train'"),
    ],
)
def test_wrong_configurations(kind: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        runner.run(config.parse(configuration(kind, **change), tmp_path), tmp_path / "run", progress=None)
    assert said in str(caught.value)


def test_splits_are_chosen_and_kept_apart(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        for folder, pixels in (("", (64, 64, 3)), ("annot", (64, 64))):
            (tmp_path / f"{split}{folder}").mkdir()
            for n in range(number + 1):
                content = np.full(pixels, n % 11, np.uint8)
                Image.fromarray(content).save(tmp_path / f"{split}{folder}" / f"{split}{n}.png")

    def lengths(**chosen: str) -> tuple[int, int]:
        data = {"set": "camvid", "path": str(tmp_path), "size": [64, 64], **chosen}
        task = tasks.read(config.parse(configuration("masks", data=data)).data)
        return len(task.train), len(task.test)

    assert lengths() == (1, 3) and lengths(train_split="train+val") == (3, 3)
    assert lengths(test_split="val") == (1, 2) and lengths(train_split="val+test", test_split="train") == (5, 1)
    with pytest.raises(InputError, match=r"data.test_split: val is learned from"):
        lengths(train_split="train+val", test_split="val")
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(InputError, match=r"data: splits 'train\+val' and 'test': 2 pictures of 'test' come twice"):
        lengths(train_split="train+val")  # val serves as test
    with pytest.raises(InputError, match=r"data: splits 'train' and 'val\+test': 2 pictures of 'val\+test' come twice"):
        lengths(test_split="val+test")
    with pytest.raises(InputError, match=r"camvid: split 'valid': expected one of train, val, test, or several, as in"):
        lengths(test_split="valid")
    with pytest.raises(InputError, match=r"data\.test_split: test is learned from"):
        tasks.read(config.parse(configuration("masks", data={"set": "scene-masks", "train_split": "test"})).data)
    with pytest.raises(InputError, match=r"cifar10: split 'train\+val': expected one of train, test$"):
        tasks.read(config.parse(configuration("masks", data={"set": "cifar10", "train_split": "train+val"})).data)


def test_a_trunk_starts_from_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = models.build("mobilenet_v2", {"width": 0.25, "num_classes": 5})
    network = {"model": "trunk_unet", "arguments": {"trunk": "mobilenet_v2", "width": 0.25}, "trunk": "classifier.pth"}
    run = configuration("masks", network=network, phase=[{"epochs": 0}])
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    runner.run(config.parse(run, tmp_path), tmp_path / "run", progress=None)
    found = checkpoint.load(tmp_path / "run" / "net.pt")[1].get_submodule("trunk").state_dict()
    assert found and all(torch.equal(value, classifier.state_dict()[name]) for name, value in found.items())
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "classifier.pth")
    with pytest.raises(
        InputError, match=r"classifier.pth: expected 'features.0.0.weight' of shape \[8, 3, 3, 3\], it is"
    ):
        runner.run(config.parse(run, tmp_path), tmp_path / "other", progress=None)
    without = {**NETWORKS["masks"], "trunk": "classifier.pth"}
    with pytest.raises(InputError, match="unet has no trunk"):
        runner.run(config.parse({**run, "network": without}, tmp_path), tmp_path / "none", progress=None)


def test_one_wrong_picture_ends_no_batch(
    finished: tuple[str, Path, Any], pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """EXIF data that are none say nothing; what memory does not hold is named."""
    kind, folder, _ = finished
    name = "detect" if kind == "boxes" else "segment"
    Image.open(pictures[1]).save(tmp_path / "exif.jpg", exif=b"Exif\0\0garbage here that is no tiff")
    files = [pictures[0], tmp_path / "exif.jpg", pictures[1]]
    command = [name, str(folder / "runs" / "two-steps-0" / "net.bb"), *map(str, files), "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    decoded = cli_pictures.decode

    def short(data: bytes, file: str, **more: Any) -> Any:
        if file.endswith("exif.jpg"):
            raise MemoryError("Unable to allocate 2.41 GiB")
        return decoded(data, file, **more)

    monkeypatch.setattr(cli_pictures, "decode", short)
    capsys.readouterr()
    assert main([*command, str(tmp_path / "short"), "--json"]) == 2
    said = capsys.readouterr()
    assert "exif.jpg: too large for the memory there is (Unable to allocate 2.41 GiB)" in said.err
    assert len(json.loads(said.out)["pictures"]) == 2


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_runs_tell_what_they_did_without(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures that are wrong are left out, and the status of the run is 2, now and when it is called again."""
    made, folder = scenes("train", 6, size=32), tmp_path / "data"
    files = [folder / split / "images" / f"{i}.png" for split in ("train", "test") for i in range(3)]
    if kind == "boxes":
        files = [folder / "JPEGImages" / f"{i}.png" for i in range(6)]
        for split, names in (("trainval", "0\n1\n2\n"), ("test", "3\n4\n5\n")):
            (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
        (folder / "Annotations").mkdir()
    for i, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made.images[i].transpose(1, 2, 0)).save(file)
        if kind == "boxes":
            box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
            text = f"<annotation><object><name>shirt</name>{box}</object></annotation>"
            (folder / "Annotations" / f"{i}.xml").write_text(text if i != 4 else "")
        else:
            target = file.parents[1] / "masks" / file.name
            target.parent.mkdir(exist_ok=True)
            Image.fromarray(made.masks[i] + np.uint8(99 * (i == 4))).save(target)
    (folder / "classes.txt").write_text("\n".join(made.classes))
    data = {"set": "bccd" if kind == "boxes" else "mask-folder", "path": str(folder), "batch": 2, "size": [32, 32]}
    content = configuration(kind, data=data)
    (tmp_path / "run.json").write_text(json.dumps(content))
    for _ in range(2):
        assert main(["train", str(tmp_path / "run.json"), "--out", str(tmp_path / "run"), "--json"]) == 2
        result = json.loads(capsys.readouterr().out)
        assert len(result["left_out"]) == 1 and ("4.xml" if kind == "boxes" else "1.png") in result["left_out"][0]
    assert main(["train", str(tmp_path / "run.json"), "--out", str(tmp_path / "run")]) == 2
    assert "left out 1 that are wrong: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_reports_show_the_float_network_of_an_earlier_phase(kind: str, tmp_path: Path) -> None:
    content = configuration(kind, phase=[{}, {"scheme": "lsq:w4-a4"}])
    result = runner.run(content, tmp_path / "run", progress=None)
    html = (tmp_path / "run" / "report.html").read_text()
    assert html.count("data:image/png") == 3 * tasks.SHOWN and ">float<" in html
    recipe, network = checkpoint.load(tmp_path / "run" / "float.pt")
    assert recipe.scheme is None
    score = tasks.read(config.parse(content).data).score(network)
    assert score[FIGURES[kind]] == result["phases"][0][FIGURES[kind]]


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_an_interrupted_run_goes_on(kind: str, tmp_path: Path) -> None:
    """With a teacher and augmentation: killed in the middle of a phase, it ends with the same parameters."""
    runner.run(configuration(kind), tmp_path / "float", progress=None)
    content = configuration(
        kind, save_every=1, teacher={"checkpoint": str(tmp_path / "float" / "net.pt")},
        data={"set": f"scene-{kind}", **DATA, "augmentation": {"flip": True}},
    )  # fmt: skip
    content["network"] = {**NETWORKS[kind], "scheme": "lsq:w4-a4", "start": str(tmp_path / "float" / "net.pt")}
    runner.run(content, tmp_path / "whole", progress=None)
    steps = 0

    class Stopped(Exception):
        pass

    update = Training._update

    def counted(self: Training, *given: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Stopped
        update(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_update", counted)
        with pytest.raises(Stopped):
            runner.run(content, tmp_path / "parts", progress=None)
    runner.run(content, tmp_path / "parts", progress=None)
    states = [checkpoint.load(tmp_path / name / "net.pt")[1].state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_rows_of_a_table_know_their_task(finished: tuple[str, Path, Any]) -> None:
    kind, folder, _ = finished
    row = spec.load(folder / "scenes.toml").rows[0]
    checked = config.parse(spec.configured(row, 0, lambda *_: Path()))
    task = tasks.read(checked.data)
    assert task.figure == FIGURES[kind] and task.arguments()["num_classes"] == 11


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_demos_on_scenes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_scenes, "QUICK", {"train_images": 32, "test_images": 6})
    task = {"boxes": "detection", "masks": "segmentation"}[kind]
    arguments = ["demo", "--task", task, "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "outputs differ on 0 of 12 images, 2 runs" in said and f"{FIGURES[kind]} %" in said
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/png") == 4 * tasks.SHOWN  # truth, float and two low-bit networks
    reader = Detector if kind == "boxes" else Segmenter
    assert reader(tmp_path / "net.bb").classes[-1] == "ankle boot"
    assert main([*arguments, "--seed", "1"]) == 2
    assert "holds another demo" in capsys.readouterr().err
