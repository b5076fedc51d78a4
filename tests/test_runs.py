"""Whole runs: configurations, what a run leaves behind, interruptions, and the command line."""

from __future__ import annotations

import copy
import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bitbranch import coverage, models
from bitbranch.cli.main import main
from bitbranch.cli.training import RECIPES
from bitbranch.errors import BitbranchError, InputError
from bitbranch.quantizers.inq import PowerOfTwoWeight
from bitbranch.training import checkpoint, config, runner, tasks

torch.set_num_threads(1)

BASE: dict[str, Any] = {
    "network": {"model": "vgg", "arguments": {"stages": [[8], [16]], "hidden": 16}},
    "data": {"set": "fashion-mnist-sample", "batch": 50, "train_images": 600, "test_images": 200},
    "threads": 1,
    "save_every": 3,
    "log_every": 2,
    "train": {"epochs": 1, "lr": 4e-3},
}
TWO_STEPS = BASE | {
    "phase": [
        {"name": "float", "epochs": 2},
        {"kind": "codes", "scheme": "tsq:wt-a2"},
        {"kind": "transforms", "images": 100, "samples": 300},
        {"name": "tuning", "lr": 1e-3},
    ]
}

RUN = """
import json, sys
from bitbranch.training import runner
runner.run(json.loads(sys.argv[1]), sys.argv[2])
"""


def changed(**tables: dict[str, Any]) -> dict[str, Any]:
    out = copy.deepcopy(BASE)
    for name, table in tables.items():
        out[name] = {**out.get(name, {}), **table}
    return out


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "net.pt")["state"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "two-steps"
    return folder, runner.run(TWO_STEPS, folder, progress=None)


def test_a_run_leaves_everything_behind(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, results = finished
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "last.pt", "best.pt", "net.pt", "float.pt", "log.csv", "log.jsonl", "report.html",
        "results.json",
    }  # fmt: skip
    assert [p["kind"] for p in results["phases"]] == ["train", "codes", "transforms", "train"]
    assert results["scheme"] == "tsq:wt-a2"
    assert results["accuracy"] > 0.5 and results["best_accuracy"] >= results["accuracy"]
    with (folder / "log.csv").open() as file:
        table = list(csv.DictReader(file))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(table) == len(rows) and rows[-1]["test_accuracy"] == results["accuracy"]
    assert float(table[0]["loss"]) == rows[0]["loss"] and rows[0]["step"] == 2
    page = (folder / "report.html").read_text()
    assert "finished" in page and "<svg" in page and "http-equiv='refresh'" not in page


def test_the_trained_network_compiles_and_verifies(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    assert main(["compile", str(finished[0] / "net.pt"), "--out", str(tmp_path / "net.bb")]) == 0
    assert main(["verify", str(tmp_path / "net.bb")]) == 0


def test_a_finished_run_is_not_run_again(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, results = finished
    before = (folder / "net.pt").stat().st_mtime_ns
    assert runner.run(folder / "config.json", folder, progress=None) == results
    assert (folder / "net.pt").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"holds a run of another configuration \(seed differs\)"):
        runner.run({**TWO_STEPS, "seed": 1}, folder, progress=None)


def killed_until_done(folder: Path, kills: int, rng: random.Random, longest: float) -> int:
    """Run, killed so many times at random moments, then to the end; how often it was really killed."""
    killed = 0
    for i in range(kills + 1):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(TWO_STEPS), str(folder)], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while i < kills and process.poll() is None and time.monotonic() < deadline:
            if (folder / "config.json").is_file():  # the imports are over
                time.sleep(rng.uniform(0, longest))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        code = process.wait(timeout=300)
        killed += code == -signal.SIGKILL
        if code == 0:
            break
    assert code == 0
    return killed


def check_kills(reference: Path, folder: Path, kills: int, longest: float) -> int:
    """Compare a run that is killed up to so many times with one that was not; how often it was killed."""
    killed = killed_until_done(folder, kills, random.Random(kills), longest)
    assert killed
    expected, found = state_of(reference), state_of(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    timeless = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (f / "log.jsonl").open()]
        for f in (reference, folder)
    ]
    assert timeless[0] == timeless[1]
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    return killed


def test_killed_and_resumed_is_never_killed(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    check_kills(finished[0], tmp_path / "run", 2, 1.5)


def test_interrupted_in_every_phase_and_between(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(BaseException):
        pass

    places = set[tuple[int, bool]]()
    save = runner._Run._save

    def stop(self: Any, number: int, training: Any) -> None:
        save(self, number, training)
        if (number, training is None) not in places:
            places.add((number, training is None))
            raise Interrupted

    monkeypatch.setattr(runner._Run, "_save", stop)
    found = None
    while found is None:
        try:
            found = runner.run(TWO_STEPS, tmp_path, progress=None)
        except Interrupted:
            continue
    assert {
        (1, False),
        (2, True),
        (3, True),
        (3, False),
        (4, True),
    } <= places  # before, in and after step 2 and its tuning
    expected, state = state_of(finished[0]), state_of(tmp_path)
    assert expected.keys() == state.keys() and all(torch.equal(expected[name], state[name]) for name in expected)
    assert found["accuracy"] == finished[1]["accuracy"]


@pytest.mark.long
def test_twenty_kills(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    killed = 0
    while killed < 20:
        killed += check_kills(finished[0], tmp_path / f"run{killed}", 10, 3.0)


def test_workers_change_nothing(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    one = changed(train={"epochs": 1})
    runner.run(one, tmp_path / "a", progress=None)
    one["data"]["workers"] = 2
    runner.run(one, tmp_path / "b", progress=None)
    a, b = state_of(tmp_path / "a"), state_of(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    bad = changed(train={"epochs": 30, "lr": 1e30, "optimizer": "sgd", "warmup": 2}) | {"save_every": 1}
    with pytest.raises(BitbranchError, match=r"train 1: the loss is (nan|inf) at epoch 1, step 2; lower the learning"):
        runner.run(bad, tmp_path, progress=None)
    state = checkpoint.read(tmp_path / "last.pt", format=runner.FORMAT)
    assert state["training"]["step"] == 1
    assert all(torch.isfinite(value).all() for value in state["training"]["network"].values())


@pytest.mark.parametrize("save_every", [1, 100])
def test_a_last_step_that_is_not_finite_is_no_success(tmp_path: Path, save_every: int) -> None:
    """The loss before it was; nothing of it is kept."""
    huge = {"lr": 1e30, "weight_decay": 1e30, "optimizer": "sgd"}
    bad = changed(data={"train_images": 50}, train=huge) | {"save_every": save_every}
    with pytest.raises(BitbranchError, match="train 1: parameters are no longer finite at epoch 1, step 1; lower"):
        runner.run(bad, tmp_path, progress=None)
    assert not (tmp_path / "last.pt").exists() and not (tmp_path / "results.json").exists()
    bad["train"] |= {"lr": 1e36, "weight_decay": 0.0}  # numbers, but of no use
    with pytest.raises(BitbranchError, match=r"train 1: the loss on the test images is (nan|inf)"):
        runner.run(bad, tmp_path / "large", progress=None)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """Files may not grow beyond a limit, as on a disk that fills up, after the first checkpoint."""
    target = tmp_path / "last.pt"
    checkpoint.write(target, {"format": "x 1", "numbers": torch.zeros(10)})
    before = target.read_bytes()
    code = (
        "import torch, sys\nfrom pathlib import Path\nfrom bitbranch.training import checkpoint\n"
        "checkpoint.write(Path(sys.argv[1]), {'format': 'x 1', 'numbers': torch.zeros(10**6)})"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], preexec_fn=limit, capture_output=True, text=True, env=environment
    )
    assert done.returncode != 0
    assert f"BitbranchError: {target}: cannot be written" in done.stderr and "is intact" in done.stderr
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_progressive_bits_portions_and_teachers(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    teacher = tmp_path / "float"
    results = runner.run(changed(train={"epochs": 2}), teacher, progress=None)
    start = {"network": {**BASE["network"], "start": results["net"]}, "teacher": {"checkpoint": results["net"]}}
    falling = BASE | start | {"phase": [{"scheme": "mbn:w{bits}-a{bits}", "bits": [8, 4, 2]}]}
    found = runner.run(falling, tmp_path / "mbn", progress=None)
    assert [p["scheme"] for p in found["phases"]] == ["mbn:w8-a8", "mbn:w4-a4", "mbn:w2-a2"]
    parts = BASE | start | {"phase": [{"scheme": "inq:w5-a4", "portions": [0.5, 1.0]}]}
    found = runner.run(parts, tmp_path / "inq", progress=None)
    assert [p["name"] for p in found["phases"]] == ["train, 50 % fixed", "train, 100 % fixed"]
    network = checkpoint.load(found["net"])[1]
    weights = [m for m in network.modules() if isinstance(m, PowerOfTwoWeight)]
    assert weights and all(w.portion == 1 for w in weights)
    hashed = BASE | start | {"phase": [{"kind": "hash", "scheme": "bwnh:w1-a4", "images": 100, "samples": 500}]}
    assert runner.run(hashed, tmp_path / "hash", progress=None)["accuracy"] > 0.3
    hints = {"kind": "hints", "scheme": "lsq:w2-a2", "guided": "act1", "hint": "act1"}
    found = runner.run(BASE | start | {"phase": [hints, {"smoothing": 0.1}]}, tmp_path / "hints", progress=None)
    assert found["accuracy"] > 0.4


def test_the_steps_of_two_step_quantization_may_be_runs(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Step 1 leaves a checkpoint from which step 2 goes on as it does within a run; one with its affine part, too."""
    phases = [dict(phase) for phase in TWO_STEPS["phase"]]
    first = runner.run({**TWO_STEPS, "phase": phases[:2]}, tmp_path / "codes", progress=None)
    assert first["accuracy"] == finished[1]["phases"][1]["accuracy"]
    shares = first["phases"][1]["zeros"]
    assert set(shares) == {"conv2", "linear1"} and all(0 < share < 1 for share in shares.values())
    recipe, network = checkpoint.load(tmp_path / "codes" / "net.pt")
    assert recipe.codes and not recipe.affine and network.get_submodule("conv2").weight_quantizer is None

    solving = {
        **TWO_STEPS,
        "network": {"model": "vgg", "start": str(tmp_path / "codes" / "net.pt")},
        "phase": phases[2:3],
    }
    second = runner.run(solving, tmp_path / "solved", progress=None)
    assert not checkpoint.load(tmp_path / "solved" / "net.pt")[0].codes
    assert abs(second["accuracy"] - finished[1]["phases"][2]["accuracy"]) < 0.1  # other images

    affine = [phases[0], {**phases[1], "affine": True}, {**phases[2], "method": "start", "reestimate": False}]
    runner.run({**TWO_STEPS, "phase": affine[:2]}, tmp_path / "affine", progress=None)
    assert checkpoint.load(tmp_path / "affine" / "net.pt")[0].affine
    third = runner.run({**TWO_STEPS, "phase": affine}, tmp_path / "start", progress=None)
    assert third["phases"][1]["accuracy"] > 0.4


def test_a_network_of_ones_own_starts_from_another_by_names(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    folder, _ = finished
    (tmp_path / "own.py").write_text(
        "from bitbranch import models\n\n@models.register\ndef mine(*, num_classes, image_size):\n"
        "    return models.vgg(stages=[[8], [16]], hidden=16, num_classes=num_classes, in_channels=1,\n"
        "                      image_size=image_size)\n"
    )
    float_phase = config.parse({**BASE, "phase": [{"epochs": 0}]})
    first = runner.run(float_phase, tmp_path / "float", progress=None)
    network = {"model": "mine", "file": "own.py", "start": str(tmp_path / "float" / "net.pt")}
    found = runner.run(
        config.parse({**BASE, "network": network, "phase": [{"epochs": 0}]}, tmp_path), tmp_path / "own", progress=None
    )
    assert found["accuracy"] == first["accuracy"]
    recipe, _ = checkpoint.load(tmp_path / "own" / "net.pt")
    assert (recipe.model, recipe.arguments) == ("mine", {"num_classes": 10, "image_size": 28})
    quantized = {**network, "start": str(folder / "net.pt")}
    with pytest.raises(InputError, match="holds a quantized vgg, not a mine"):
        runner.run(config.parse({**BASE, "network": quantized}, tmp_path), tmp_path / "not", progress=None)


def test_layers_have_schemes_of_their_own_through_all_phases(tmp_path: Path) -> None:
    run = {**BASE, "phase": [{"epochs": 0}]}
    runner.run(config.parse(run), tmp_path / "float", progress=None)
    network = {
        **BASE["network"],
        "start": str(tmp_path / "float" / "net.pt"),
        "first": "w4a8",
        "layers": {"conv2": "lsq:w8-a8", "linear1": "none"},
    }
    phases = [{"scheme": "mbn:w4-a4", "epochs": 0}, {"scheme": "mbn:w2-a2", "epochs": 0}]
    runner.run(config.parse({**run, "network": network, "phase": phases}), tmp_path / "mixed", progress=None)
    recipe, found = checkpoint.load(tmp_path / "mixed" / "net.pt")
    schemes = {each.name: each.scheme for each in coverage(found)}
    expected = {"conv1": "uniform:w4-a8", "conv2": "lsq:w8-a8", "linear1": None, "linear2": "uniform:w8-a8"}
    assert {name: schemes[name] for name in expected} == expected
    assert (recipe.scheme, recipe.layers) == ("mbn:w2-a2", {"conv2": "lsq:w8-a8", "linear1": None})
    other = {**network, "arguments": {**BASE["network"]["arguments"], "hidden": 32}}
    with pytest.raises(InputError, match="holds a vgg of hidden 16, not 32"):
        runner.run(config.parse({**run, "network": other, "phase": phases}), tmp_path / "other", progress=None)
    with pytest.raises(InputError, match="w9x"):
        config.parse({**run, "network": {**network, "layers": {"conv2": "w9x"}}})


def test_bfloat16_learns(tmp_path: Path) -> None:
    low = changed(train={"epochs": 3, "precision": "bfloat16"}, network={"scheme": "tsq:wt-a2"})
    assert runner.run(low, tmp_path, progress=None)["accuracy"] > 0.5


CODES = {"kind": "codes", "scheme": "tsq:wt-a2"}


@pytest.mark.parametrize(
    ("start", "scheme", "phases"),
    [
        ([CODES], "", [{"scheme": "twn:wt-a2"}]),
        ([CODES], "bwn:w1-a2", [{}]),
        ([CODES], "tsq:wt-a2", [{}]),
        ([CODES | {"affine": True}], "lsq:w2-a2", [{}]),
        ([CODES], "", [{"kind": "transforms", "images": 100, "samples": 300}, {"scheme": "tsq:w4-a4"}]),
        ([{"scheme": "ffn:wt-a8"}], "tsq:wt-a4", [{"epochs": 0}]),
        ([{"scheme": "mbn:w4-a4"}], "", [CODES, {"kind": "transforms", "images": 100, "samples": 300}]),
    ],
)
def test_the_file_is_the_network_that_was_measured(
    start: list[dict[str, Any]], scheme: str, phases: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Whatever a run starts from, what it trained is what can be read again; also if it is one run."""
    few = changed(data={"train_images": 200})
    first = runner.run(few | {"phase": start}, tmp_path / "first", progress=None)
    network = BASE["network"] | {"start": first["net"], "scheme": scheme}
    runs = [few | {"network": network, "phase": phases}]
    joined = [phases[0] | ({"scheme": scheme} if scheme else {}), *phases[1:]]
    runs.append(few | {"phase": [*start, *joined]})
    for number, content in enumerate(runs):
        result = runner.run(content, tmp_path / str(number), progress=None)
        recipe, read = checkpoint.load(result["net"])
        score = tasks.read(config.parse(content).data).score(read)
        assert (score["accuracy"], score["loss"]) == (result["accuracy"], pytest.approx(result["loss"], rel=1e-6))
        assert not recipe.codes and all(layer.scheme for layer in coverage(read))


def test_a_quantized_start_keeps_its_exceptions(tmp_path: Path) -> None:
    first = changed(network={"scheme": "lsq:w4-a4", "layers": {"conv2": "w8a8"}})
    start = BASE["network"] | {"start": runner.run(first, tmp_path / "first", progress=None)["net"]}
    for change, text in (
        ({"first": "none"}, r"network\.first: .*net\.pt is quantized, and its first layer keeps w8a8"),
        ({"last": "lsq:w4-a4"}, r"network\.last: .*keeps w8a8"),
        ({"layers": {"conv2": "w7a7"}}, r"network\.layers: .*keeps its own: \{'conv2': 'w8a8'\}"),
    ):
        with pytest.raises(InputError, match=text):
            runner.run(BASE | {"network": start | change}, tmp_path / "second", progress=None)
    same = start | {"scheme": "lsq:w2-a2", "layers": {"conv2": "w8a8"}}
    runner.run(BASE | {"network": same}, tmp_path / "second", progress=None)


def test_progress_says_which_share_of_codes_is_zero(tmp_path: Path) -> None:
    said = list[str]()
    result = runner.run(BASE | {"phase": [CODES | {"epochs": 2}]}, tmp_path, progress=said.append)
    lines = [line for line in said if line.startswith("codes 1: zeros conv2 ")]
    assert len(lines) == 2 and lines[-1].startswith(
        f"codes 1: zeros conv2 {100 * result['phases'][0]['zeros']['conv2']:.1f} %"
    )


def test_layers_have_schedules_of_their_own() -> None:
    phase = {"kind": "transforms", "lambdas": {"conv2": [0.5, 1], "linear*": 0.25}}
    parsed = config.parse(BASE | {"phase": [CODES, phase]})
    assert config.parse(parsed.as_dict()).as_dict() == parsed.as_dict()
    recipe = parsed.phase[1].solving(0)
    assert [tuple(recipe.schedule(n)) for n in ("conv2", "linear1", "conv3")] == [(0.5, 1.0), (0.25,), (0.01, 0.1, 1.0)]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_are_sound(recipe: Path) -> None:
    loaded = config.load(recipe)
    assert loaded.name and loaded.source and config.parse(loaded.as_dict()) == loaded


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"colour": 1}, "colour: unknown key"),
        ({"sead": 1}, "sead: unknown key; did you mean seed?"),
        ({"row": [{"name": "float"}]}, "it has rows: run it by bitbranch table, not train"),
        ({"network": {}}, "network.model: missing"),
        ({"data": {"set": "cifar10", "batch": "many"}}, "data.batch: expected a whole number, got 'many'"),
        ({"data": {"set": "cifar10", "batch": 0}}, "data.batch must be at least 1"),
        ({"train": {"lr": -1}}, "lr must be at least 0"),
        ({"train": {"optimizer": "lion"}}, "expected 'adam' or 'sgd'"),
        ({"train": {"schedule": "step"}}, "milestones are rising epochs"),
        ({"train": {"epochs": 1.5}}, "epochs: expected a whole number, got 1.5"),
        ({"phase": [{"kind": "dance"}]}, "kind 'dance': expected one of train"),
        ({"phase": [{"scheme": "mbn:w9-a2"}]}, "unknown scheme"),
        ({"phase": [{"scheme": "mbn:w{bits}-a2"}]}, "needs bits"),
        ({"phase": [{"scheme": "mbn:w{bits}-a2", "bits": [2, 8]}]}, "bits is a list of falling whole numbers"),
        ({"phase": [{"scheme": "mbn:w{bits}-a2", "bits": 4}]}, "bits is a list of falling whole numbers, got 4"),
        ({"phase": [{"scheme": "mbn:w{bits}-a2", "bits": [8, "a"]}]}, "bits is a list of falling whole numbers"),
        ({"phase": [{"scheme": ["{bits}"], "bits": [8]}]}, "scheme must hold {bits}"),
        ({"phase": [{"scheme": "inq:w{bits}", "bits": [5, 4], "portions": [0.5, 1.0]}]}, "has bits and portions"),
        ({"phase": [{"portions": [0.5, "x", 1]}]}, "portions is a list of numbers"),
        ({"phase": [{"portions": [[0.5], [1]]}]}, "portions is a list of numbers"),
        ({"phase": [{"portions": [0.5]}]}, "end with 1"),
        ({"phase": [{"kind": "hints"}]}, "hints need guided"),
        ({"phase": []}, "phase: there is none"),
        ({"network": {"model": "lenet"}}, "model 'lenet': expected one of"),
        ({"network": {"model": "vgg_small", "start": "nowhere.pt"}}, "nowhere.pt: cannot be read"),
        ({"data": {"set": "mnist"}}, "data set 'mnist': expected one of"),
        ({"data": {"set": "cifar10", "path": "nowhere"}}, "has no CIFAR-10"),
        ({"phase": [{"kind": "transforms"}]}, "needs a phase of kind 'codes' before it"),
        ({"phase": [{"kind": "transforms", "method": "tsk"}]}, "method 'tsk': expected 'tsq', 'linear' or 'start'"),
        ({"phase": [{"kind": "transforms", "lambdas": []}]}, "lambdas must be positive"),
        ({"train": {"lambdas": None}}, "lambdas: expected a number, got None"),
        ({"network": {"model": "vgg_small", "start": "a\0b"}}, "null byte"),
        ({"phase": [{"kind": "transforms", "lambdas": {"conv2": "x"}}]}, "lambdas.conv2: expected a number"),
        ({"phase": [{"kind": "codes"}, {"kind": "transforms", "scheme": "tsq:w4-a2"}]}, "give it there"),
        (
            {"phase": [{"kind": "codes"}, {"scheme": "lsq:w4-a2"}, {"kind": "transforms"}]},
            "needs a phase of kind 'codes'",
        ),
    ],
)
def test_bad_configurations_are_one_line(
    change: dict[str, Any], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(BASE | change))
    assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("bitbranch: error: ") and text in error, error


def test_paths_that_the_command_changes_are_from_where_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "run.json").write_text(json.dumps(BASE))
    for run, change, wanted in (
        ("cifar10-vgg-small-lsq", "data.path=mine", "mine"),
        ("configs/run.json", "network.start=a.pt", "a.pt"),
        ("configs/run.json", "teacher.checkpoint=b.pt", "b.pt"),
        ("configs/run.json", 'teacher.checkpoint=["c.pt"]', "c.pt"),
    ):
        assert main(["train", run, "--set", change, "--out", "out"]) == 2
        assert f"{tmp_path / wanted}: " in capsys.readouterr().err


def test_what_has_no_use_is_said(tmp_path: Path) -> None:
    said = list[str]()
    network = {"first": "w4a4", "layers": {"linear2": "w8a8"}}
    runner.run(changed(network=network, data={"train_images": 50}), tmp_path / "float", progress=said.append)
    assert [line[:22] for line in said if "not used" in line] == ["network.first: not use", "network.layers: not us"]
    said.clear()
    low = changed(network={**network, "scheme": "lsq:w4-a4"}, data={"train_images": 50})
    runner.run(low, tmp_path / "low", progress=said.append)
    assert not [line for line in said if "not used" in line]


def test_all_images_that_are_asked_for_are_solved_with(tmp_path: Path) -> None:
    """Also where they are no whole batches; in an order of their own, as test images are taken."""
    task = tasks.read(config.parse(BASE).data)
    for count in (20, 130):
        batches = list(task.calibration(count, 3))
        assert sum(len(images) for images, _ in batches) == count
        again = torch.cat([labels for _, labels in task.calibration(count, 3)])
        other = torch.cat([labels for _, labels in task.calibration(count, 4)])
        labels = torch.cat([labels for _, labels in batches])
        assert torch.equal(labels, again) and not torch.equal(labels, other)
        assert torch.equal(labels.sort()[0], other.sort()[0])


def test_damaged_results_are_named(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json: damaged \(.*\); remove it"):
        runner.run(TWO_STEPS, tmp_path / "run", progress=None)
    (tmp_path / "run" / "results.json").unlink()
    assert runner.run(TWO_STEPS, tmp_path / "run", progress=None)["accuracy"] == finished[1]["accuracy"]


def test_a_run_that_never_began_gives_its_folder_back(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no CIFAR-10"):
        runner.run(changed(data={"set": "cifar10", "path": str(tmp_path)}), tmp_path / "out", progress=None)
    found = runner.run(changed(data={"train_images": 100}), tmp_path / "out", progress=None)
    assert Path(found["net"]).is_file()


def test_the_command_changes_all_phases_or_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phases = [{"epochs": 2}, {"epochs": 3, "lr": 0.1}, {"scheme": "lsq:w4-a4"}]
    (tmp_path / "run.json").write_text(json.dumps(changed(data={"train_images": 50}) | {"phase": phases}))
    run = ["train", str(tmp_path / "run.json"), "--out", str(tmp_path / "out")]
    assert main([*run, "--set", "train.epochs=1", "train.lr=0.002", "phase.3.lr=0.001"]) == 0
    done = json.loads((tmp_path / "out" / "config.json").read_text())["phase"]
    assert [(phase["epochs"], phase["lr"]) for phase in done] == [(1, 0.002), (1, 0.002), (1, 0.001)]
    (tmp_path / "run.json").write_text(json.dumps(BASE))
    for change, text in (
        ("phase.1.lr=0.1", "there are no phases; use train.lr"),
        ("train.epoch=2", "train.epoch: unknown key; did you mean epochs?"),
    ):
        assert main([*run, "--set", change]) == 2
        assert text in capsys.readouterr().err


def test_the_command_changes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(BASE))
    arguments = ["train", str(path), "--out", str(tmp_path / "out"), "--set", "data.train_images=100", "train.epochs=1"]
    assert main([*arguments, "name=quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "quick"
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["data"]["train_images"] == 100
    assert main([*arguments, "--set", "name=again", "--set", "seed=1", "--out", str(tmp_path / "other")]) == 0
    told = json.loads((tmp_path / "other" / "config.json").read_text())
    assert (told["data"]["train_images"], told["name"], told["seed"]) == (100, "again", 1)
    capsys.readouterr()
    assert main(["train", "no-such-recipe"]) == 2
    assert "recipes are bccd-ssd-cpu, bccd-ssd-gpu, camvid" in capsys.readouterr().err
