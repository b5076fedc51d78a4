"""The bench: statistics, workers that fail in every way, what is written; quick, and without any other engine."""

from __future__ import annotations

import itertools
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitbranch.bench import command, compare, files, levels, ncnn_int8, networks, peers, report, stats
from bitbranch.bench.executors import Executor
from bitbranch.bench.layers import Layer, layer_program
from bitbranch.bench.peers import Contestant
from bitbranch.bench.worker import Worker, WorkerFailure
from bitbranch.errors import BitbranchError, InputError
from bitbranch.reporting.text import markdown_table

FAKE = "fake_executors:Fake"
SETS = ["amx", "avx512_vnni", "avx512", "avx_vnni", "avx2", "scalar"]


@pytest.fixture(autouse=True)
def _workers_find_the_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


# ---- statistics -----------------------------------------------------------------------------------------------------


def test_every_round_counts_the_same() -> None:
    times = stats.summarize([[3.0, 1.0], [4.0], [9.0, 8.0, 5.0, 9.0, 9.0, 9.0]])
    assert times.rounds == (2.0, 4.0, 9.0)
    assert (times.median, times.low, times.high, times.least, times.calls) == (4.0, 3.0, 6.5, 1.0, 9)


seconds = st.floats(1e-6, 1e3)


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=20))
def test_ratios_are_those_of_the_rounds(pairs: list[tuple[float, float]]) -> None:
    slow, fast = (stats.summarize([[pair[i]] for pair in pairs]) for i in (0, 1))
    found = stats.ratio(slow, fast)
    by_round = sorted(a / b for a, b in pairs)
    assert found.value == pytest.approx(np.median(by_round))
    assert by_round[0] * (1 - 1e-9) <= found.low <= found.value <= found.high <= by_round[-1] * (1 + 1e-9)


@given(st.lists(st.lists(seconds, min_size=1, max_size=4), min_size=1, max_size=5))
def test_times_survive_json(rounds: list[list[float]]) -> None:
    times = stats.summarize(rounds)
    back = stats.Times.from_dict(json.loads(json.dumps(times.as_dict())))
    assert back.calls == times.calls
    assert back.rounds == pytest.approx(times.rounds)
    assert (back.median, back.low, back.high, back.least) == pytest.approx(
        (times.median, times.low, times.high, times.least)
    )


@pytest.mark.parametrize("rounds", [[], [[]], [[1.0], []], [[0.0]], [[-1.0]], [[float("nan")]], [[float("inf")]]])
def test_impossible_times_are_refused(rounds: list[list[float]]) -> None:
    with pytest.raises(InputError):
        stats.summarize(rounds)


def test_ratios_need_the_same_rounds() -> None:
    with pytest.raises(InputError, match="2 rounds against 1"):
        stats.ratio(stats.summarize([[1.0], [1.0]]), stats.summarize([[1.0]]))


# ---- workers --------------------------------------------------------------------------------------------------------


def test_a_worker_answers_pinned_and_with_its_variables() -> None:
    cpu = sorted(os.sched_getaffinity(0))[-1]
    with Worker(FAKE, {"milliseconds": 2.0}, cpus=[cpu], environment={"SOME_LEVEL": "AVX2"}) as worker:
        assert worker.call("time", batch=3, seconds=0.0) == [0.006] * 3
        assert worker.call("where") == [cpu]
        assert worker.call("variable", name="SOME_LEVEL") == "AVX2"


def test_a_worker_does_nothing_between_its_turns() -> None:
    with Worker(FAKE, {}) as worker:
        state = Path(f"/proc/{worker._process.pid}/stat")
        if not state.exists():
            pytest.skip("needs /proc")
        worker.call("ticks", seconds=0.01)
        for _ in range(100):  # the signal takes a moment
            if state.read_text().rsplit(")", 1)[1].split()[0] == "T":
                break
            time.sleep(0.01)
        assert state.read_text().rsplit(")", 1)[1].split()[0] == "T"
        assert worker.call("time", batch=1, seconds=0.0)


@pytest.mark.parametrize("fails", ["init", "time"])
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ValueError: {} does not work and says so in two lines"),
        ("exit", "exit status 3: .*the reason on standard error"),
        ("kill", "signal SIGSEGV"),
        ("hang", r"no answer within 0\.\d+ s|no answer within 1 s"),
    ],
)
def test_every_way_to_fail_has_its_reason(fails: str, how: str, reason: str) -> None:
    start = time.perf_counter()
    limit = 1.0 if how == "hang" else 60.0
    with pytest.raises(WorkerFailure, match=reason.format(fails)):  # noqa: SIM117
        with Worker(FAKE, {"fails": fails, "how": how}, limit=limit if fails == "init" else 60.0) as worker:
            worker.call("time", limit=limit, batch=1, seconds=0.0)
    assert time.perf_counter() - start < 30


def test_a_worker_lives_on_after_an_error_and_not_after_its_end() -> None:
    with Worker(FAKE, {"fails": "prepare"}) as worker:
        with pytest.raises(WorkerFailure, match="prepare does not work"):
            worker.call("prepare", batch=1)
        assert worker.call("time", batch=1, seconds=0.0)
        with pytest.raises(WorkerFailure, match="AttributeError"):
            worker.call("nothing")
        worker.close()
        with pytest.raises(WorkerFailure, match="the process had ended"):
            worker.call("time", batch=1, seconds=0.0)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(WorkerFailure, match="ModuleNotFoundError: No module named 'no_such_engine'"):
        Worker("no_such_engine:make", {})


# ---- the comparison -------------------------------------------------------------------------------------------------


def fake(name: str, **options: Any) -> Contestant:
    peer = None if name.startswith("bitbranch") else "given"
    return Contestant(name, "int8", "", levels.NATIVE, "", FAKE, "", options, peer)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A result with a fast executor, a slow one, and some that fail in different ways and moments."""
    here = [
        fake("bitbranch wt-a2", milliseconds=2.0),
        fake("slow int8", milliseconds=5.0),
        fake("crash int8", fails="time", how="kill"),
        fake("broken int8", fails="prepare"),
        fake("absent int8", fails="init"),
    ]
    monkeypatch.setattr(
        compare, "contestants", lambda *_: (here, dict.fromkeys(("held int8", "also held"), "has no switch"))
    )
    given = files.Files(tmp_path, {"given": tmp_path}, lambda _: None)
    plan = compare.Plan({"wt-a2": "net.bb"}, [], (3, 8, 8), batches=(1, 4), threads=(1,), rounds=4)
    rows = list(itertools.chain(*compare.compare(plan, given, SETS, lambda _: None)))
    network = {"name": "net", "shape": [3, 8, 8], "weights": "random"}
    network["programs"] = {"wt-a2": {"bytes": 1234, "bit_budget": 1200, "macs": 10}}  # type: ignore[assignment]
    return {
        "format": command.FORMAT, "key": "k", "date": "2026-01-01", "machine": {"processor": "one"}, "rounds": 4,
        "versions": {"python": "3"}, "network": network, "seconds": 1.0, "accuracy": {}, "times": rows,
    }  # fmt: skip


def test_one_failure_does_not_end_the_others(measured: dict[str, Any]) -> None:
    rows = {(r["executor"], r["batch"]): r for r in measured["times"]}
    assert len(rows) == 7 * 2
    assert rows["slow int8", 1]["milliseconds"] == pytest.approx(5.0)
    assert rows["bitbranch wt-a2", 4]["milliseconds"] == pytest.approx(8.0)
    assert rows["slow int8", 1]["calls"] == 12 and len(rows["slow int8", 1]["rounds"]) == 4
    reasons = {"crash": "SIGSEGV", "broken": "prepare does not work", "absent": "init does not", "held": "no switch"}
    for name, reason in reasons.items():
        for batch in (1, 4):
            assert reason in rows[f"{name} int8", batch]["reason"]
            assert "milliseconds" not in rows[f"{name} int8", batch]


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_times_stay_where_the_profile_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    here = [fake("bitbranch wt-a2", fails="profile", how=how), fake("slow int8", milliseconds=5.0)]
    monkeypatch.setattr(compare, "contestants", lambda *_: (here, {}))
    plan = compare.Plan({}, [], (1, 1, 1), batches=(1, 2), threads=(1,), rounds=1)
    said: list[str] = []
    rows = list(
        itertools.chain(
            *compare.compare(plan, files.Files(tmp_path, {"given": tmp_path}, said.append), SETS, said.append)
        )
    )
    first = rows[0]
    assert first["executor"] == "bitbranch wt-a2" and first["milliseconds"] == pytest.approx(1.0)
    assert "steps" not in first and any("no profile" in line for line in said)
    assert [row["milliseconds"] for row in rows if row["executor"] == "slow int8"] == pytest.approx([5.0, 10.0])


def test_cells_of_markdown_hold_anything() -> None:
    lines = markdown_table(["a", "b"], ["---", "---:"], [["x | y", "one\ntwo"]])
    assert lines == ["| a | b |", "| --- | ---: |", r"| x \| y | one two |"]


def test_reports_have_ratios_and_reasons(measured: dict[str, Any]) -> None:
    found = report.ratios(measured, (1, 1, levels.NATIVE))
    assert found["slow int8", "bitbranch wt-a2"].value == pytest.approx(2.5)
    for text in (report.text(measured), report.markdown(measured)):
        assert "2.50 (2.50..2.50)" in text
        assert "not measured: crash int8: the process ended by signal SIGSEGV" in text
        assert "not measured: held int8, also held: has no switch" in text
        assert "weights are random" in text
    assert report.plot(measured).count("<svg") == 1
    measured["accuracy"] = {"slow int8": {"accuracy": 0.5, "agreement": 0.75}}
    assert "| slow int8 | 50.00 | 75.00 |" in report.markdown(measured)


def test_only_missing_settings_are_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compare, "contestants", lambda *_: ([fake("bitbranch a")], {}))
    given = files.Files(tmp_path, {}, lambda _: None)
    plan = compare.Plan({}, [], (1, 1, 1), batches=(1, 2), threads=(1, 2), rounds=1)
    done = [{"level": levels.NATIVE, "threads": 1, "batch": 1}, {"level": levels.NATIVE, "threads": 2, "batch": 1}]
    rows = list(itertools.chain(*compare.compare(plan, given, SETS, lambda _: None, done)))
    assert [(r["threads"], r["batch"]) for r in rows] == [(1, 2), (2, 2)]
    assert command.estimate(plan, done + rows) == 0


def test_accuracy_and_agreement(tmp_path: Path) -> None:
    np.save(tmp_path / "torch f32 contiguous.npy", np.eye(4)[[0, 1, 2, 3]])
    np.save(tmp_path / "slow int8.npy", np.eye(4)[[0, 1, 2, 2]])
    found = compare.accuracy(tmp_path, np.array([0, 1, 0, 0]), "torch f32")
    assert found["slow int8"] == {"accuracy": 0.5, "agreement": 0.75}
    assert found["torch f32 contiguous"] == {"accuracy": 0.5, "agreement": 1.0}
    assert compare.accuracy(tmp_path, np.zeros(4, int), "nothing")["slow int8"] == {"accuracy": 0.25}


# ---- names, files, data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("native", "amx"),
        ("avx512_vnni", "avx512_vnni"),
        ("avx512", "avx512"),
        ("avx2", "avx2"),
        ("avx_vnni", "avx_vnni"),
    ],
)
def test_levels_give_the_engines_widest_set(level: str, expected: str) -> None:
    assert levels.engine_set(level, SETS) == expected


def test_levels_that_a_machine_lacks() -> None:
    assert levels.engine_set("avx512_vnni", ["avx512", "avx2", "scalar"]) == "avx512"
    assert levels.engine_set("avx512", ["neon", "scalar"]) is None
    with pytest.raises(InputError, match="'mmx' is not available"):
        levels.engine_set("mmx", SETS)
    assert levels.environment("native") == {}
    assert levels.environment("scalar") is None
    assert levels.environment("avx512") == {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "DNNL_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"
    }  # fmt: skip


def test_peers_that_cannot_be_held_are_left_out_with_a_reason() -> None:
    chosen = peers.choose(["int8"])
    assert [p.name for p in chosen] == ["onnxruntime int8", "openvino int8", "litert int8", "ncnn int8"]
    here, out = peers.contestants({"wt-a2": "net.bb"}, chosen, "avx512", SETS, (3, 8, 8))
    assert [(c.name, c.isa) for c in here] == [("bitbranch wt-a2", "avx512"), ("openvino int8", "")]
    assert set(out) == {"onnxruntime int8", "litert int8", "ncnn int8"}
    here, out = peers.contestants({"wt-a2": "net.bb"}, chosen, "native", SETS, (3, 8, 8))
    assert [c.variant for c in here if c.name == "onnxruntime int8"] == [
        "QDQ",
        "QDQ, unsigned activations",
        "QOperator, unsigned activations",
    ] and not out
    with pytest.raises(InputError, match="peer 'tensorrt'"):
        peers.choose(["tensorrt"])


def test_every_file_of_a_peer_has_a_rule() -> None:
    from bitbranch.bench.convert import FUNCTIONS

    for peer in peers.PEERS.values():
        assert all(v.file in files.RULES or v.file == "float" for v in peer.variants)
    for rule in files.RULES.values():
        assert rule.function in FUNCTIONS
        assert set(rule.needs.values()) <= {*files.RULES, "float", "images"}


def test_a_file_that_cannot_be_made_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    made = files.Files(tmp_path, {"float": tmp_path / "none.pt", "images": tmp_path / "none.npy"}, said.append)
    monkeypatch.setitem(files.RULES, "onnx", files.Rule("net.onnx", "no_such_function", {}, {}))
    for _ in range(2):
        with pytest.raises(BitbranchError, match="no_such_function"):
            made.get("openvino")
    assert said == ["making onnx"]
    assert not (tmp_path / "onnx").exists()


def test_data_is_checked(tmp_path: Path) -> None:
    x, labels = np.zeros((4, 3, 8, 8), np.float32), np.arange(4)
    np.savez(tmp_path / "good.npz", images=x, labels=labels, calibration=x[:2])
    data = networks.Data.load(tmp_path / "good.npz")
    assert data.images.shape == x.shape and data.calibration is not None and len(data.calibration) == 2
    wrong: list[dict[str, Any]] = [
        {"images": x},
        {"images": x, "labels": labels[:3]},
        {"images": x, "labels": labels / 2},
        {"images": x.astype(np.float64), "labels": labels},
        {"images": x, "labels": labels, "calibration": x[0]},
        {"images": np.array([None]), "labels": labels},
    ]
    for i, arrays in enumerate(wrong):
        np.savez(tmp_path / f"{i}.npz", **arrays)
        with pytest.raises(InputError, match=f"{i}.npz"):
            networks.Data.load(tmp_path / f"{i}.npz")
    with pytest.raises(InputError, match=r"none\.npz"):
        networks.Data.load(tmp_path / "none.npz")


def test_results_are_written_and_read(tmp_path: Path, measured: dict[str, Any]) -> None:
    command._write(tmp_path, measured, finished=True)
    assert command.read(tmp_path / "bench.json") == {**measured, "text": ""}
    assert {f.name for f in tmp_path.iterdir()} >= {"bench.json", "bench.md", "bench.svg"}
    for text in ("", "[]", "{}", '{"format": "bitbranch bench 1"}', '{"format": "other", "times": []}'):
        (tmp_path / "bench.json").write_text(text)
        with pytest.raises(InputError, match=r"bench\.json"):
            command.read(tmp_path / "bench.json")


def test_the_command_on_a_file_resumes(tmp_path: Path) -> None:
    net = tmp_path / "net.bb"
    layer_program(Layer(8, 6, 8, 3, 1, "t", "u2")).save(net)
    said: list[str] = []
    options = command.Options([str(net)], threads=(1,), batches=(1, 2), seconds=0.01, out=tmp_path / "out", resume=True)
    first = command.run(options, said.append)
    assert [r["batch"] for r in first["times"]] == [1, 2]
    assert all(r["milliseconds"] > 0 and r["steps"] for r in first["times"])
    assert "take turns" in " ".join(said)
    said.clear()
    again = command.run(options, said.append)
    assert again["times"] == first["times"] and "take turns" not in " ".join(said)
    assert "no labelled images were given" in again["text"]

    images = np.random.default_rng(0).normal(size=(5, 8, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(5))
    options = replace(options, data=tmp_path / "data.npz")
    measured = command.run(options, said.append)
    shares = measured["accuracy"]["bitbranch net"]
    assert command.run(options, said.append)["accuracy"] == measured["accuracy"] and 0 <= shares["accuracy"] <= 1
    assert "No accuracy" not in measured["text"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nets": ["no-such-model"]}, "expected one of"),
        ({"nets": ["resnet18", "resnet34"]}, "one model's name"),
        ({"nets": ["resnet18"], "data": "d.npz"}, "d.npz"),
        ({"nets": ["resnet18"], "schemes": ["wt"]}, "unknown scheme"),
        ({"nets": ["none.bb"]}, "none.bb"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, Any], text: str) -> None:
    options = {k: Path(v) if k == "data" else v for k, v in options.items()}
    with pytest.raises((BitbranchError, OSError), match=text):
        command.run(command.Options(**options), lambda _: None)


# ---- ncnn's files ---------------------------------------------------------------------------------------------------


def test_ncnn_files_are_read_and_quantized(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(n).astype("<f4") for n in (2 * 3 * 9, 4 * 2 * 9))
    bias = rng.standard_normal(2).astype("<f4")
    tag = np.uint32(0).tobytes()
    param = tmp_path / "net.param"
    text = [
        "7767517", "4 4", "Input in0 0 1 in0 0=8 1=8 2=3", "Convolution a 1 1 in0 x 0=2 1=3 5=1 6=54 9=1",
        "Convolution b 1 1 x y 0=4 1=3 5=0 6=72", "ReLU c 1 1 y out0",
    ]  # fmt: skip
    param.write_text("\n".join(text) + "\n")
    content = tag + first.tobytes() + bias.tobytes() + tag + second.tobytes()
    param.with_suffix(".bin").write_bytes(content)
    layers = ncnn_int8.read(param)
    assert [layer.line() for layer in layers] == text[2:]
    assert layers[1].bias is not None and np.array_equal(layers[1].bias, bias)

    out = tmp_path / "int8.param"
    ncnn_int8.write(layers, {"a": 50.0, "b": 25.0}, out)
    assert "Convolution a 1 1 in0 x 0=2 1=3 5=1 6=54 9=1 8=101" in out.read_text()
    assert "Convolution b 1 1 x y 0=4 1=3 5=0 6=72 8=1" in out.read_text()
    data = out.with_suffix(".bin").read_bytes()
    assert len(data) == 4 + 56 + 8 + 8 + 4 * 2 + 4 + 72 + 16 + 4
    integers = np.frombuffer(data, np.int8, 54, 4).reshape(2, -1)
    scales = np.frombuffer(data, "<f4", 2, 4 + 56 + 8)
    assert np.abs(integers).max(axis=1).tolist() == [127, 127]
    assert np.abs(integers / scales[:, None] - first.reshape(2, -1)).max() <= 0.5001 / scales.min()
    assert np.frombuffer(data, "<f4", 2, 4 + 56 + 8 + 8).tolist() == [50.0, 25.0]

    for broken, match in (
        ([*text[:4], "PReLU p 1 1 x y 0=2"], "PReLU"),
        (["nothing"], "not a .param"),
        (text[:4], "bytes are left"),
        ([*text, "Convolution d 1 1 out0 z 0=4 6=9000"], "ends early"),
    ):
        param.write_text("\n".join(broken) + "\n")
        with pytest.raises(ValueError, match=match):
            ncnn_int8.read(param)


def test_outputs_survive_executors_that_reuse_their_memory(tmp_path: Path) -> None:
    """Some hand out a view of memory that the next call overwrites."""

    def prepare(batch: int) -> Any:
        memory = np.zeros((batch, 2), np.float32)

        def run(x: np.ndarray) -> np.ndarray:
            memory[:] = x.reshape(batch, -1)[:, :2]
            return memory

        return run

    images = np.arange(5 * 4, dtype=np.float32).reshape(5, 1, 2, 2)
    np.save(tmp_path / "images.npy", images)
    Executor((1, 2, 2), prepare).outputs(str(tmp_path / "images.npy"), str(tmp_path / "out.npy"), batch=2)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), images.reshape(5, 4)[:, :2])


@torch.no_grad()
def test_peers_get_batchnorm_where_they_can_fold_it() -> None:
    from bitbranch.bench.convert import foldable
    from bitbranch.models import vgg

    torch.manual_seed(0)
    network = vgg(stages=[[8], [8, 8], [8]], num_classes=4, image_size=16, pool_first=True)
    for norm in (network.norm1, network.norm3, network.norm4):
        norm.weight.uniform_(0.5, 2.0)  # type: ignore[union-attr]
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    network.norm3.weight[2] = -1.0  # type: ignore[union-attr, index]
    network.eval()
    x, before = torch.randn(3, 3, 16, 16), network
    moved = foldable(network)
    assert torch.equal(moved(x), network(x)) and network is before
    order = [str(node.target) for node in moved.graph.nodes if node.op == "call_module"]  # type: ignore[union-attr]
    at = order.index
    assert at("norm1") == at("pool1") - 1 == at("conv1") + 1 and at("norm4") == at("pool3") - 1
    assert at("norm3") == at("pool2") + 1, "one gain is negative"
    plain = vgg(stages=[[8]], image_size=16).eval()
    assert foldable(plain) is plain
