"""Tables of methods: what a file may say, what is run and what is not run again, and what the figures mean."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitbranch.cli.main import main
from bitbranch.errors import BitbranchError, InputError
from bitbranch.runtime.engine import Engine
from bitbranch.table import command, page, rows, spec
from bitbranch.training import config, tasks

torch.set_num_threads(1)
TABLES = Path(__file__).parent.parent / "benchmarks" / "tables"

TABLE = """
name = "Garments"
note = "Few images."
seeds = [3, 4]

[common]
threads = 1
network = {model = "vgg", arguments = {stages = [[6], [12]], hidden = 16}}
data = {set = "fashion-mnist-sample", batch = 50, train_images = 400, test_images = 150}
train = {epochs = 1, lr = 4e-3}

[[row]]
name = "float"

[[row]]
name = "LSQ 2/2"
published = "67.6 elsewhere"
network = {start = "{run:float}", scheme = "lsq:w2-a2"}

[[row]]
name = "BWN"
network = {start = "{run:float}", scheme = "bwn:w1"}
seeds = [4]

[[row]]
name = "by | itself, for $x^$"
scheme = "3 bits of its own"

[[row]]
name = "fails"
network = {start = "{run:float}", scheme = "inq:w4-a2"}
phase = [{kind = "transforms"}]

[[row]]
name = "not here"
reason = "takes a year"
"""


def written(folder: Path, text: str = TABLE) -> Path:
    path = folder / "garments.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("table")
    written(folder)
    options = command.Options(folder / "garments.toml", folder / "out")
    return folder, command.run(options, lambda _: None)


def test_rows_and_their_means(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, document = finished
    by_name = {row["name"]: row for row in document["rows"]}
    for row in document["rows"]:
        accuracies = [run["accuracy"] for run in row["runs"]]
        assert len(accuracies) == {"BWN": 1, "fails": 0, "not here": 0}.get(row["name"], 2)
        if accuracies:
            assert row["mean"] == pytest.approx(np.mean(accuracies))
        if len(accuracies) > 1:
            assert row["spread"] == pytest.approx(np.std(accuracies, ddof=1))
    gaps = [
        a["accuracy"] - b["accuracy"] for a, b in zip(by_name["LSQ 2/2"]["runs"], by_name["float"]["runs"], strict=True)
    ]
    assert by_name["LSQ 2/2"]["difference"] == pytest.approx(np.mean(gaps))
    assert by_name["BWN"]["compared"] == [4]
    assert document["failed"] and by_name["fails"]["failed"].keys() == {"3", "4"}
    floats = {row["name"] for row in document["rows"] if row["runs"] and row["runs"][0].get("not compiled") == "float"}
    assert "float" in floats and set(document["latency"]) == floats | {"LSQ 2/2"}
    assert {p.name for p in (folder / "out").iterdir()} == {"runs", "table.md", "table.json", "table.svg", "table.html"}


def test_folders_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a row starts from is found wherever the table, its results and the caller are."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "elsewhere").mkdir()
    rows = TABLE.split("[[row]]")
    written(tmp_path / "tables", "[[row]]".join(rows[:3]).replace("seeds = [3, 4]", "seeds = [3]"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["table", "../tables/garments.toml", "--out", "made/here", "--no-latency"]) == 0
    found = json.loads((tmp_path / "elsewhere" / "made" / "here" / "table.json").read_text())
    assert [len(row["runs"]) for row in found["rows"]] == [1, 1]
    assert found["rows"][0]["runs"][0]["source"].endswith("150 of them")


def test_a_row_of_another_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done is not done again, but nor is it passed off as what the table says now."""
    rows = "[[row]]".join(TABLE.split("[[row]]")[:3]).replace("seeds = [3, 4]", "seeds = [3]")
    run = ["table", str(written(tmp_path, rows)), "--out", str(tmp_path / "out"), "--no-latency"]
    assert main(run) == 0 and "another configuration" not in capsys.readouterr().out
    (tmp_path / "out").rename(tmp_path / "moved")
    run[3] = str(tmp_path / "moved")
    assert main(run) == 0 and "another configuration" not in capsys.readouterr().out
    written(tmp_path, rows.replace("epochs = 1", "epochs = 2"))
    assert main([*run, "--rows", "float"]) == 0
    said = capsys.readouterr()
    assert f"float, seed 3: was run otherwise (phase differs); to redo it, remove {tmp_path}" in said.err
    for row in ("float", "LSQ 2/2"):
        assert f"{row}, seed 3 was run with another configuration: phase differs" in said.out
    (tmp_path / "moved" / "runs" / "lsq-2-2-3" / "row.json").write_text("{")
    assert main([*run, "--rows", "float"]) == 1
    assert "row.json: damaged" in capsys.readouterr().out


def test_files_are_where_the_table_is_also_when_they_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tables").mkdir()
    own = "from torch import nn\nimport bitbranch as bb\n\n\n@bb.models.register\ndef own_of_a_table():\n    return "
    (tmp_path / "tables" / "own.py").write_text(own + "nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n")
    rows = TABLE.split("[[row]]")[0].replace("seeds = [3, 4]", "seeds = [3]") + '[[row]]\nname = "float"\n'
    rows = re.sub("network = .*", 'network = {file = "own.py", model = "own_of_a_table"}', rows)
    written(tmp_path / "tables", rows)
    monkeypatch.chdir(tmp_path)
    run = ["table", "tables/garments.toml", "--out", "out", "--no-latency"]
    for _ in range(2):
        assert main(run) == 0
        said = capsys.readouterr()
        assert "otherwise" not in said.err and "another configuration" not in said.out
    with (tmp_path / "tables" / "own.py").open("a") as file:
        file.write("# another\n")
    assert main(run) == 0
    assert "was run otherwise (the content of network.file differs)" in capsys.readouterr().err


def test_a_row_that_started_from_another_network_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where that network was trained again, by the same name."""
    rows = "[[row]]".join(TABLE.split("[[row]]")[:3]).replace("seeds = [3, 4]", "seeds = [3]")
    run = ["table", str(written(tmp_path, rows)), "--out", str(tmp_path / "out"), "--no-latency"]
    assert main(run) == 0 and "otherwise" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out" / "runs" / "float-3")
    assert main(run) == 0 and "otherwise" not in capsys.readouterr().err  # it is the same again
    shutil.rmtree(tmp_path / "out" / "runs" / "float-3")
    written(tmp_path, rows.replace('name = "float"', 'name = "float"\ntrain = {epochs = 2, lr = 4e-3}'))
    assert main(run) == 0
    said = capsys.readouterr()
    assert "LSQ 2/2, seed 3: was run otherwise (the content of network.start differs)" in said.err
    assert "LSQ 2/2, seed 3 was run with another configuration: the content of network.start differs" in said.out


def test_what_is_missing_or_damaged_ends_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Networks that latencies are measured of, and the table as it was."""
    text = "[[row]]".join(TABLE.split("[[row]]")[:3]).replace("seeds = [3, 4]", "seeds = [3]")
    run = ["table", str(written(tmp_path, text)), "--out", str(tmp_path / "out")]
    assert main(run) == 0
    kept = json.loads((tmp_path / "out" / "table.json").read_text())
    assert set(kept["latency"]) == {"float", "LSQ 2/2"}
    elsewhere = {**kept, "machine": {"processor": "another"}, "date": "2001-02-03"}
    (tmp_path / "out" / "table.json").write_text(json.dumps(elsewhere))
    assert main([*run, "--no-latency"]) == 0
    again = json.loads((tmp_path / "out" / "table.json").read_text())
    assert {key: again[key] for key in ("latency", "machine", "date")} == {
        key: elsewhere[key] for key in ("latency", "machine", "date")
    }
    capsys.readouterr()
    (tmp_path / "out" / "runs" / "float-3" / "net.pt").unlink()
    (tmp_path / "out" / "table.json").write_text("{")
    assert main(run) == 0
    said = capsys.readouterr().err
    assert "latency: float: " in said and "net.pt" in said and "table.json: damaged (" in said
    assert set(json.loads((tmp_path / "out" / "table.json").read_text())["latency"]) == {"LSQ 2/2"}


def test_a_disk_that_is_full_keeps_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise BitbranchError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(rows, "write_bytes", full)
    result = rows.run({"network": {"model": "nothing"}}, tmp_path / "run", tmp_path, lambda _: None)
    assert "data: missing" in result["error"] and not (tmp_path / "run" / "error.txt").exists()


def test_engine_and_reference_agree_on_the_test_set(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, document = finished
    for run in document["rows"][1]["runs"]:
        assert run["differ"] == 0 and run["images"] == 150
        file = folder / "out" / "runs" / f"lsq-2-2-{run['seed']}" / "net.bb"
        assert run["bytes"] == file.stat().st_size
        test = tasks.read(config.parse(spec.configured(_row(folder, "float"), 3, lambda *_: Path())).data).test
        assert run["accuracy"] == (Engine(file)(test.images).argmax(1) == test.labels).mean()
    assert "input is float" in document["rows"][2]["runs"][0]["not compiled"]


def _row(folder: Path, name: str) -> spec.Row:
    return next(row for row in spec.load(folder / "garments.toml").rows if row.name == name)


def test_what_is_done_is_not_run_again(finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, document = finished
    again: list[Path] = []
    run = rows.run
    monkeypatch.setattr(rows, "run", lambda content, out, *rest: again.append(out) or run(content, out, *rest))
    options = command.Options(folder / "garments.toml", folder / "out", measure=False)
    repeated = command.run(options, lambda _: None)
    assert [path.name for path in again] == ["fails-3", "fails-4"]
    assert repeated["rows"] == document["rows"] and repeated["latency"] == document["latency"]


def test_only_what_was_asked_for_and_what_it_needs(tmp_path: Path) -> None:
    options = command.Options(written(tmp_path), tmp_path / "out", rows=["BWN"], seeds=[4], measure=False)
    assert not command.run(options, lambda _: None)["failed"]
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == ["bwn-4", "float-4"]
    late = command.Options(written(tmp_path), tmp_path / "late", hours=-1, measure=False)
    assert command.run(late, lambda _: None)["left"] == 9


def test_a_row_may_have_seeds_of_its_own(tmp_path: Path) -> None:
    own = TABLE.replace('start = "{run:float}", scheme = "bwn:w1"', 'scheme = "bwn:w1"')
    table = spec.load(written(tmp_path, own.replace("seeds = [4]", "seeds = [4, 9]")))
    assert [seed for row, seed in table.runs([], []) if row.name == "BWN"] == [4, 9]
    assert [seed for row, seed in table.runs([], []) if row.name == "float"] == [3, 4]


def test_a_row_may_take_the_networks_of_all_its_seeds(tmp_path: Path) -> None:
    """Those rows are run first, for every seed, whichever row and seed is asked for."""
    learned = 'name = "LSQ 2/2"\nteacher = {checkpoint = "{runs:float}"}'
    text = TABLE.replace('name = "LSQ 2/2"', learned)
    table = spec.load(written(tmp_path, text))
    order = [(row.name, seed) for row, seed in table.runs(["LSQ 2/2"], [4])]
    assert order == [("float", 4), ("float", 3), ("LSQ 2/2", 4)]
    row = next(row for row in table.rows if row.name == "LSQ 2/2")
    content = spec.configured(row, 4, lambda name, seed: Path(f"{name}-{seed}"))
    assert content["teacher"] == {"checkpoint": ["float-3", "float-4"]} and content["network"]["start"] == "float-4"
    (tmp_path / "more.toml").write_text(text.replace(learned, learned + "\nseeds = [4, 8]"))
    with pytest.raises(InputError, match=r"row 'LSQ 2/2': needs 'float', which has no seed 8"):
        spec.load(tmp_path / "more.toml")
    (tmp_path / "within.toml").write_text(text.replace("{runs:float}", "a{runs:float}"))
    with pytest.raises(
        InputError, match=r"row 'LSQ 2/2': 'a\{runs:float\}': \{runs:NAME\} is a list, and stands alone"
    ):
        spec.load(tmp_path / "within.toml")


def test_the_text_says_it_all(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, document = finished
    for text in (page.text(document), page.markdown(document), (folder / "out" / "table.html").read_text()):
        for part in (
            "Garments",
            "Few images.",
            "LSQ 2/2",
            "67.6 elsewhere",
            "takes a year",
            "seed 3",
            "(2)",
            "0 of 300",
            "3 bits of its own",
        ):
            assert part in text
    assert (folder / "out" / "table.svg").read_text().startswith("<svg")
    assert json.loads((folder / "out" / "table.json").read_text())["rows"] == document["rows"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seeds = [3, 4]", "seeds = []", "seeds: expected whole numbers"),
        ('note = "Few images."', 'notes = ""', "notes: unknown key"),
        ('name = "BWN"', 'name = "LSQ 2-2"', "row 'LSQ 2-2': the name is taken"),
        ('{run:float}", scheme = "bwn', '{run:flaot}", scheme = "bwn', "row 'BWN': needs 'flaot'"),
        ('scheme = "bwn:w1"', 'scheme = "bwn:w7"', "bwn has"),
        (
            'reason = "takes a year"',
            'reason = "takes a year"\nepochs = 3',
            "has a reason why it is not run, and epochs",
        ),
        ('published = "67.6 elsewhere"', 'minus = "nothing"', "minus 'nothing' is no row"),
        ("epochs = 1", "epoch = 1", "row 'float': train.epoch: unknown key; did you mean epochs?"),
        ("threads = 1", "seed = 7", "row 'float': seed: a table, or a row, has seeds"),
        ("seeds = [3, 4]", "seeds = [-1]", "seeds: expected whole numbers from 0"),
        ("seeds = [4]", "seeds = [4, 5]", "row 'BWN': needs 'float', which has no seed 5"),
        ("[common]", "[comon]", "comon: unknown key"),
    ],
)
def test_wrong_tables_are_one_line(before: str, after: str, said: str, tmp_path: Path) -> None:
    assert before in TABLE
    path = written(tmp_path, TABLE.replace(before, after))
    with pytest.raises(InputError, match=r"garments\.toml: ") as caught:
        spec.load(path)
    assert said in str(caught.value)


def test_a_configuration_of_one_run_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('network = {model = "vgg_small"}\ndata = {set = "cifar10"}\n')
    with pytest.raises(InputError, match=r"run\.toml: it has no rows: run it by bitbranch train, not table"):
        spec.load(path)


def test_command_line(finished: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished
    arguments = ["table", str(folder / "garments.toml"), "--out", str(folder / "out"), "--no-latency", "--json"]
    assert main([*arguments, "--rows", "float"]) == 1  # a row of the table has failed
    assert json.loads(capsys.readouterr().out)["name"] == "Garments"
    assert main([*arguments, "--rows", "flaot"]) == 2
    assert "no row 'flaot'" in capsys.readouterr().err
    assert main([*arguments, "--seeds", "7"]) == 2
    assert "no row has the seed 7; there are 3, 4" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.toml")), ids=lambda path: path.stem)
def test_tables_that_come_with_the_project(path: Path) -> None:
    table = spec.load(path)
    assert table.rows and table.name != path.stem


def test_the_core_is_left_in_order(tmp_path: Path) -> None:
    """What training keeps of the compiled core is given back before the process ends."""
    arguments = ["table", str(written(tmp_path)), "--out", str(tmp_path / "out"), "--rows", "LSQ 2/2", "--seeds", "4"]
    code = "import sys\nfrom bitbranch.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    ran = subprocess.run([sys.executable, "-c", code, *arguments, "--no-latency"], capture_output=True, text=True)
    assert ran.returncode == 0 and "nanobind" not in ran.stderr, ran.stderr
