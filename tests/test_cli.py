"""The command line: results, JSON, and bad input as one line and exit status 2, never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bitbranch as bb
from bitbranch import models
from bitbranch.cli.files import load_array
from bitbranch.cli.main import _plain_warnings, _size, main
from bitbranch.errors import InputError
from bitbranch.training import checkpoint
from bitbranch.training.checkpoint import Recipe

torch.set_num_threads(1)  # small problems; the machine may be shared

TINY = {"stages": [[4], [6]], "hidden": 8, "num_classes": 3, "in_channels": 1, "image_size": 8}
RECIPE = Recipe("vgg", TINY, (1, 8, 8), "mbn:w2-a2", mean=(0.5,), std=(0.25,), info={"name": "tiny"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint ``net.pt``, its compiled ``net.bb`` and ``images.npy``."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    network = RECIPE.build()
    images = torch.randn(40, 1, 8, 8)
    network(images)  # in training mode: BatchNorm statistics, quantizers' steps
    checkpoint.save(folder / "net.pt", RECIPE, network.eval())
    np.save(folder / "images.npy", images[:5].numpy())
    assert main(["compile", str(folder / "net.pt"), "--out", str(folder / "net.bb")]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command, check that it ends with status 2 and one line of error, and return the line."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bitbranch: error: ")
    assert err.count("\n") == 1
    return err


def test_compile_and_info_say_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(folder / "net.pt"), "--out", str(folder / "again.bb"), "--json"]) == 0
    compiled = json.loads(capsys.readouterr().out)
    assert main(["info", str(folder / "again.bb"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert compiled["bytes"] == told["bytes"] == (folder / "again.bb").stat().st_size
    assert compiled["bit_budget"] == told["bit_budget"]
    assert compiled["macs"] == told["macs"] == bb.summary(RECIPE.build(), torch.rand(1, 1, 8, 8)).macs
    assert told["info"]["name"] == "tiny"
    assert [row["weights"] for row in told["operations"] if row["weights"]] == ["s8", "b2", "b2", "s8"]
    assert (folder / "again.bb").read_bytes() == (folder / "net.bb").read_bytes()


@pytest.mark.parametrize(
    ("net", "given"),
    [
        *((net, given) for net in ("net.bb", "net.pt") for given in ([], ["--images", "images.npy"])),
        ("net.bb", ["--checkpoint", "net.pt"]),
    ],
)
def test_verify_finds_no_difference(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, net: str, given: list[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["verify", net, "--json", *given]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mismatches"] == 0
    executors = [row["executor"] for row in result["equality"]]
    assert {f"engine scalar, {path}, 2 threads" for path in ("planar", "products")} <= {*executors}
    assert ("torch float64" in executors) == (net == "net.pt" or "--checkpoint" in given)
    assert all(row["compared"] > 0 for row in result["equality"])


def test_run_gives_what_the_reference_gives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = bb.load(folder / "net.bb").reference(np.load(folder / "images.npy"))
    outputs = folder / "outputs.npy"
    assert main(["run", str(folder / "net.bb"), str(folder / "images.npy"), "--out", str(outputs)]) == 0
    assert np.array_equal(np.load(outputs), expected)
    capsys.readouterr()
    assert main(["run", str(folder / "net.bb"), str(folder / "images.npy"), "--threads", "2"]) == 0
    assert [int(line) for line in capsys.readouterr().out.split()] == expected.argmax(1).tolist()


def test_bench_times_every_setting(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(folder / "net.bb"), "--threads", "1", "--batch", "1", "3", "--seconds", "0.02"]
    assert main([*arguments, "--isa", "scalar", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["isa"], row["batch"]) for row in result["times"]] == [("scalar", 1), ("scalar", 3)]
    assert all(row["milliseconds"] > 0 for row in result["times"])
    assert all(sum(step["macs"] > 0 for step in row["steps"]) == 4 for row in result["times"])
    assert main(arguments) == 0
    assert "ms a call" in capsys.readouterr().out


def test_commands_on_compiled_networks_do_not_import_torch(folder: Path) -> None:
    code = (
        "import sys; from bitbranch.cli.main import main\n"
        "for words in (['info'], ['verify'], ['bench', '--seconds', '0.01']):\n"
        f"    assert main([words[0], {str(folder / 'net.bb')!r}, *words[1:]]) == 0\n"
        f"assert main(['run', {str(folder / 'net.bb')!r}, {str(folder / 'images.npy')!r}]) == 0\n"
        "assert not {'torch', 'onnx', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_package_runs_as_a_module() -> None:
    found = subprocess.run([sys.executable, "-m", "bitbranch", "--version"], capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.startswith("bitbranch")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("bitbranch ")


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["info"], ["bench", "net.bb", "--threads", "0"], ["compile", "a"]]
)
def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert "--help" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((2, 1, 8, 9), np.float32), "expected shape (N, 1, 8, 8), got (2, 1, 8, 9)"),
        (np.zeros((8, 8), np.float32), "expected shape"),
        (np.zeros((2, 1, 8, 8), np.int32), "expected float32 or uint8, got int32"),
        (np.zeros((2, 1, 8, 8), complex), "got complex128"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), "holds NaN"),
    ],
)
def test_wrong_images_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], array: np.ndarray, text: str
) -> None:
    np.save(tmp_path / "x.npy", array)
    assert text in refused(capsys, "run", folder / "net.bb", tmp_path / "x.npy")
    assert text in refused(capsys, "verify", folder / "net.bb", "--images", tmp_path / "x.npy")


def test_image_files_that_are_none_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04", (folder / "images.npy").read_bytes()[:-1]):
        (tmp_path / "x.npy").write_bytes(content)
        assert f"{tmp_path / 'x.npy'}: not a readable .npy" in refused(
            capsys, "run", folder / "net.bb", tmp_path / "x.npy"
        )
    assert "x.npy" in refused(capsys, "run", folder / "net.bb", tmp_path / "none" / "x.npy")
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    assert "not a readable .npy" in refused(capsys, "run", folder / "net.bb", tmp_path / "several.npz")


@pytest.mark.parametrize("command", ["info", "verify", "bench", "run"])
def test_damaged_networks_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    whole = (folder / "net.bb").read_bytes()
    path = tmp_path / "bad.bb"
    more = [str(folder / "images.npy")] if command == "run" else []
    flips = [bytes([*whole[:i], whole[i] ^ 4, *whole[i + 1 :]]) for i in (0, 9, 200, len(whole) // 2, len(whole) - 1)]
    for content in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], whole + b"0", *flips):
        path.write_bytes(content)
        assert str(path) in refused(capsys, command, path, *more)
    assert "none.bb" in refused(capsys, command, tmp_path / "none.bb", *more)


def test_an_unknown_scheme_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(RECIPE).items()}
    content = {"format": checkpoint.FORMAT, "recipe": {**stored, "scheme": "mbn:w2-a99"}, "state": {}}
    torch.save(content, tmp_path / "net.pt")
    line = refused(capsys, "compile", tmp_path / "net.pt", "--out", tmp_path / "net.bb")
    assert f"{tmp_path / 'net.pt'}: unknown scheme 'mbn:w2-a99'" in line
    assert not (tmp_path / "net.bb").exists()


def test_an_unsupported_layer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))

    monkeypatch.setitem(models.MODELS, "odd", odd)
    recipe = Recipe("odd", {}, (1, 8, 8), "uniform:w2-a2")
    network = recipe.build()
    network(torch.randn(4, 1, 8, 8))
    checkpoint.save(tmp_path / "net.pt", recipe, network)
    line = refused(capsys, "compile", tmp_path / "net.pt", "--out", tmp_path / "net.bb")
    assert str(tmp_path / "net.pt") in line
    assert "gelu" in line.lower()


def test_a_float_network_is_not_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe("vgg", TINY, (1, 8, 8))
    checkpoint.save(tmp_path / "net.pt", recipe, recipe.build())
    assert "conv1" in refused(capsys, "compile", tmp_path / "net.pt", "--out", tmp_path / "net.bb")


def test_missing_data_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITBRANCH_DATA", str(tmp_path / "nowhere"))
    line = refused(capsys, "demo", "--full", "--out", tmp_path / "out")
    assert str(tmp_path / "nowhere") in line


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("in the way")
    assert str(tmp_path / "out") in refused(capsys, "demo", "--quick", "--out", tmp_path / "out")


def test_an_output_that_cannot_be_written_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none" / "y.npy"
    assert "y.npy" in refused(capsys, "run", folder / "net.bb", folder / "images.npy", "--out", missing)
    assert "net.bb" in refused(capsys, "compile", folder / "net.pt", "--out", tmp_path / "none" / "net.bb")


def test_an_unknown_instruction_set_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'mmx' is not available" in refused(capsys, "bench", folder / "net.bb", "--isa", "mmx")


def test_an_interrupt_ends_with_130(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(net: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitbranch.cli.files.info", interrupted)
    assert main(["info", str(folder / "net.bb")]) == 130
    assert capsys.readouterr().err == "bitbranch: interrupted\n"


def test_solve_converts_resumes_and_goes_on_from_codes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = replace(RECIPE, scheme=None)
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "float.pt", plain, plain.build())
    np.save(tmp_path / "pixels.npy", np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8)).astype(np.uint8))
    arguments = ["solve", tmp_path / "float.pt", "--images", tmp_path / "pixels.npy", "--batch", 8, "--threads", 1]
    for out in ("one.pt", "two.pt"):
        assert main([str(a) for a in [*arguments, "--out", tmp_path / out, "--state", tmp_path / "s", "--json"]]) == 0
        printed, said = capsys.readouterr()
        told = json.loads(printed)
        assert told["scheme"] == "tsq:wt-a2" and told["images"] == 20 and len(told["layers"]) == 3
        assert ("(kept)" in said) == (out == "two.pt")
    one, two = (checkpoint.load(tmp_path / out)[1] for out in ("one.pt", "two.pt"))
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert main(["verify", str(tmp_path / "one.pt"), "--images", str(folder / "images.npy")]) == 0
    again = ["solve", tmp_path / "one.pt", "--images", folder / "images.npy", "--out", tmp_path / "three.pt"]
    assert main([str(a) for a in [*again, "--method", "linear", "--samples", 100]]) == 0
    capsys.readouterr()
    assert "is quantized as tsq:wt-a2" in refused(capsys, *again, "--scheme", "tsq:w1-a2")
    step_1 = replace(RECIPE, scheme="tsq:wt-a2", codes=True)  # as a run that ends with it leaves it
    codes = step_1.build()
    bb.calibrate(codes, [torch.from_numpy(np.load(folder / "images.npy"))])
    checkpoint.save(tmp_path / "codes.pt", step_1, codes)
    solving = ["solve", tmp_path / "codes.pt", "--images", folder / "images.npy", "--out", tmp_path / "four.pt"]
    assert main([str(a) for a in [*solving, "--samples", 100, "--json"]]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 3
    assert main([str(a) for a in [*solving, "--samples", 100, "--keep-outputs", "--json"]]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 2
    solved, network = checkpoint.load(tmp_path / "four.pt")
    assert not solved.codes and network.get_submodule("conv2").weight_quantizer is not None
    assert main(["verify", str(tmp_path / "four.pt"), "--images", str(folder / "images.npy")]) == 0
    capsys.readouterr()
    mixed = [*arguments, "--out", tmp_path / "mixed.pt", "--layer", "conv2=tsq:w4-a4", "--json"]
    assert main([str(a) for a in mixed]) == 0
    assert [layer["name"] for layer in json.loads(capsys.readouterr().out)["layers"]] == ["conv2", "linear1", "linear2"]
    schemes = {each.name: each.scheme for each in bb.coverage(checkpoint.load(tmp_path / "mixed.pt")[1])}
    assert schemes["conv2"] == "tsq:w4-a4" and schemes["linear1"] == "tsq:wt-a2"
    assert "no layer" in refused(capsys, *mixed[:-2], "nothing=w8a8")
    assert "--layer and --per-channel are for float" in refused(capsys, *again, "--layer", "conv2=w8a8")
    assert "--first, --last, --layer and" in refused(capsys, *again, "--first", "w4a4")
    open_ends = [*arguments, "--out", tmp_path / "open.pt", "--first", "none", "--layer", "conv2=none", "--samples", 2]
    assert main([str(a) for a in open_ends]) == 0  # fewer samples than batches, too
    built, network = checkpoint.load(tmp_path / "open.pt")
    assert built.first is None and [each.scheme for each in bb.coverage(network)][:2] == [None, None]
    assert "per_channel: is for sparse codes" in refused(
        capsys, *arguments, "--out", tmp_path / "x.pt", "--scheme", "w4a4", "--per-channel"
    )
    capsys.readouterr()
    for wrong in (tmp_path / "float.pt", tmp_path, tmp_path / "nowhere" / "x.pt"):
        assert f"--out {wrong}" in refused(capsys, *arguments, "--out", wrong)
    assert "is what is read" in refused(capsys, "compile", tmp_path / "one.pt", "--out", tmp_path / "one.pt")
    assert "expected NAME=SCHEME" in refused(capsys, *mixed[:-2], "conv2")
    np.save(tmp_path / "wrong.npy", np.zeros((2, 3, 8, 8), np.float32))
    assert "expected float32 or uint8 [N, 1, 8, 8]" in refused(
        capsys, *arguments[:3], tmp_path / "wrong.npy", "--out", tmp_path / "x.pt"
    )


def test_rounded_sums_are_counted_and_are_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(
        RECIPE, model="resnet_cifar", arguments={"depth": 8, "in_channels": 1, "width": 0.5}, scheme="lsq:w4-a4"
    )
    torch.manual_seed(0)
    network = recipe.build()
    bb.calibrate(network, [torch.rand(16, *recipe.input_shape)])
    checkpoint.save(tmp_path / "net.pt", recipe, network)
    assert main(["verify", str(tmp_path / "net.pt"), "--json", "--count", "32"]) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = [row for row in result["equality"] if row["executor"] == "torch float64"]
    assert row["rounds"] and result["mismatches"] == 0
    assert main(["verify", str(tmp_path / "net.pt")]) == 0
    assert "are rounded to integers" in capsys.readouterr().out


def test_verify_finds_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In front of an average that is rounded nothing may differ; behind one, no more than rounding explains."""
    layers: dict[str, object] = {"depth": 8, "in_channels": 1, "width": 0.5}
    torch.manual_seed(0)
    for model, arguments in (("mobilenet_v2", {"in_channels": 1, "width": 0.25}), ("resnet_cifar", layers)):
        recipe = replace(RECIPE, model=model, arguments={**arguments, "num_classes": 3}, scheme="lsq:w4-a4")
        network = recipe.build()
        network.train()(torch.randn(16, *recipe.input_shape))  # BatchNorm statistics, quantizers' steps
        checkpoint.save(tmp_path / "net.pt", recipe, network.eval())
        assert main(["compile", str(tmp_path / "net.pt"), "--out", str(tmp_path / "net.bb")]) == 0
        with torch.no_grad():
            for norm in network.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.weight.neg_()
                    norm.bias.add_(1.5)
        checkpoint.save(tmp_path / "other.pt", recipe, network)
        capsys.readouterr()
        words = ["verify", str(tmp_path / "net.bb"), "--checkpoint"]
        assert main([*words, str(tmp_path / "net.pt")]) == 0
        assert main([*words, str(tmp_path / "other.pt")]) == 1
        text = capsys.readouterr().out
        assert "codes behind residual sums" in text and "accumulators" in text
    assert "is a checkpoint, and compared with its own network" in refused(
        capsys, "verify", tmp_path / "net.pt", "--checkpoint", tmp_path / "other.pt"
    )


def test_nothing_is_written_over_what_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, images = folder / "net.bb", folder / "images.npy"
    before = net.read_bytes(), images.read_bytes()
    for out in (net, images):
        assert "is what is read" in refused(capsys, "run", net, images, "--out", out)
    assert (net.read_bytes(), images.read_bytes()) == before
    out = folder / "outputs.npz"
    assert main(["run", str(net), str(images), "--out", str(out)]) == 0
    (scores,) = np.load(out).values()
    assert scores.shape == (5, 3)


def test_a_solved_network_goes_over_nothing_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((2, 1, 28, 28), np.float32))
    before = images.read_bytes()
    (tmp_path / "net.pt").write_bytes(b"net")
    for out in (images, tmp_path / "net.pt"):
        assert "is what is read" in refused(capsys, "solve", tmp_path / "net.pt", "--images", images, "--out", out)
    solve = ("solve", tmp_path / "net.pt", "--images", images, "--state", tmp_path / "state")
    assert "lies in the folder of --state" in refused(capsys, *solve, "--out", tmp_path / "state" / "x.pt")
    assert images.read_bytes() == before


@pytest.mark.parametrize("seed", ["-1", "x", "99999999999999999999999"])
@pytest.mark.parametrize(
    "command", [("demo", "--quick"), ("solve", "a", "--images", "b", "--out", "c"), ("verify", "a")]
)
def test_seeds_are_small_whole_numbers(command: tuple[str, ...], seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--seed: expected a whole number from 0 to 2^31 - 1, got '{seed}'" in refused(
        capsys, *command, f"--seed={seed}"
    )


class Pair(nn.Module):
    """Of two inputs, the second enlarged by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(2, 4, 2, 2)
        self.three = nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.three((self.one(x) + self.two(y)).relu())


def test_networks_of_several_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    given = torch.randn(3, 1, 8, 8), torch.randn(3, 2, 4, 4)
    q = bb.quantize(Pair(), "w4a4")
    bb.calibrate(q, [given])
    bb.compile(q, given).save(tmp_path / "net.bb")
    files = [str(tmp_path / name) for name in ("x.npy", "y.npy")]
    for file, x in zip(files, given, strict=True):
        np.save(file, x.numpy())
    net, out = str(tmp_path / "net.bb"), tmp_path / "out.npy"
    assert main(["verify", net]) == 0 and main(["verify", net, "--images", *files]) == 0
    assert main(["profile", net, "--repeat", "1"]) == 0
    assert main(["run", net, *files, "--out", str(out)]) == 0
    np.testing.assert_array_equal(np.load(out), bb.load(net).reference(*(x.numpy() for x in given)))
    assert "inputs" in refused(capsys, "run", net, files[0], "--out", out)
    assert main(["info", net]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "convtranspose" in line)
    assert line.split()[2:4] == ["two", "s4"]


def test_a_reader_that_has_enough_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m bitbranch info {folder / 'net.bb'} --json"
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr


def test_peers_need_the_float_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", folder / "net.bb", "--threads", 1, "--isa", "scalar", "--seconds", 0.01, "--peers"]
    assert "peer 'nosuch': expected all" in refused(capsys, *arguments, "nosuch")
    assert main([str(a) for a in [*arguments, "torch"]]) == 0
    assert "no peers: they are given the float network, --float CHECKPOINT" in capsys.readouterr().err


def test_modules_are_found_by_the_names_in_the_docs() -> None:
    code = "import bitbranch as bb; from bitbranch import training\n"
    code += (
        "print(training.teachers.Ensemble, training.stages.progressive, training.hints.fit_hints, bb.vision.Detector)\n"
    )
    code += "try: training.nothing\nexcept AttributeError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "has no attribute 'nothing'" in done.stdout


def test_image_sizes(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert (_size("32"), _size("180x240")) == ((32, 32), (180, 240))
    for text in ("32x", "x32", "32X48", "0", "1x2x3", "-1"):
        assert "HEIGHTxWIDTH" in refused(capsys, "bench", "vgg_small", f"--image-size={text}")
    assert "--image-size and --model-arguments are for a model's name" in refused(
        capsys, "bench", folder / "net.bb", "--image-size", "8"
    )


def test_warnings_are_lines_without_code() -> None:
    usual = warnings.formatwarning
    with _plain_warnings():
        assert warnings.formatwarning(UserWarning("a box is empty"), UserWarning, "box_set.py", 103) == (
            "bitbranch: warning: a box is empty\n"
        )
        assert "DeprecationWarning" in warnings.formatwarning(DeprecationWarning("old"), DeprecationWarning, "x.py", 1)
    assert warnings.formatwarning is usual


def test_a_damaged_array_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, file = (folder / "images.npy").read_bytes(), tmp_path / "x.npy"
    for bit in range(8 * 128):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with contextlib.suppress(InputError, MemoryError):
            load_array(file)
    file.write_bytes(whole[:8] + b"\x76\x01" + whole[10:])
    assert "not a readable .npy array" in refused(capsys, "run", folder / "net.bb", file, "--out", tmp_path / "o.npy")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_results_that_cannot_be_printed(folder: Path) -> None:
    command = [sys.executable, "-m", "bitbranch", "info", str(folder / "net.bb")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and "the result cannot be printed (No space left on device)" in done.stderr
    strange = folder / "n\u00e4t.bb"
    strange.write_bytes((folder / "net.bb").read_bytes())
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command[:-1], str(strange)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_names_with_a_null_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match="null byte"):
        bb.load("a\0b")
