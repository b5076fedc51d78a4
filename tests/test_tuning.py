"""Cost tables and forced families: validated, ignored when malformed, and never of influence on results."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbranch.bench import tune
from bitbranch.bench.layers import Layer, layer_images, layer_program
from bitbranch.cli.main import main
from bitbranch.errors import BitbranchError, FormatError, InputError
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import reference, tuning
from bitbranch.runtime.choice import DICTIONARIES, KERNEL_FAMILIES, candidates_of
from bitbranch.runtime.engine import Engine
from bitbranch.runtime.profile import CEILING_TAPS, Profile, ProfileRow, ceiling

try:
    ISAS = engine_module.instruction_sets()
except BitbranchError:
    pytest.skip("the compiled core is not installed", allow_module_level=True)

from engines import PLANAR, convolutions, networks
from strategies import examples

TABLE = {ISAS[0]: {"large": {"2x2": {"dictionary": 300.0, "byte16": 150, "byte": 90.5}}}}
LAYERS = [
    Layer(12, 9, 10, 3, 1, "t", "u2"),
    Layer(12, 9, 10, 3, 1, "b1", "b1"),
    Layer(12, 9, 24, 3, 2, "s4", "s4", groups=12),
    Layer(16, 1, 9, 1, 1, "b2", "u4"),
    Layer(7, 5, 8, 3, 1, "s8", "u8"),
    Layer(20, 6, 8, 1, 1, "t", "u8"),
]


def file(folder: Path, **changes: Any) -> Path:
    """A file of a good table, with some parts changed."""
    target = folder / "table.json"
    tuning.save(TABLE, target)
    target.write_text(json.dumps(json.loads(target.read_text()) | changes))
    return target


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert tuning.read(file(tmp_path)) == TABLE
    assert [f.name for f in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "other"}, "format"),
        ({"processor": "another"}, "processor"),
        ({"version": "9.9.9"}, "version"),
        ({"rates": None}, "object"),
        ({"rates": {"avx2": []}}, "object"),
        ({"rates": {"avx2": {"huge": {}}}}, "unknown shape 'huge'"),
        ({"rates": {"avx2": {"large": {"2x9": {}}}}}, "2x9"),
        ({"rates": {"avx2": {"large": {"2x2": {"magic": 1.0}}}}}, "unknown family 'magic'"),
        ({"rates": {"avx2": {"large": {"2x2": {"byte": "fast"}}}}}, "not a rate"),
        ({"rates": {"avx2": {"large": {"2x2": {"byte": True}}}}}, "not a rate"),
        ({"rates": {"avx2": {"large": {"2x2": {"byte": 0}}}}}, "not above 0"),
        ({"rates": {"avx2": {"large": {"2x2": {"byte": float("nan")}}}}}, "not a rate"),
        ({"rates": {"avx2": {"large": {"2x2": {"byte": float("inf")}}}}}, "not a rate"),
    ],
)
def test_malformed_tables_are_ignored_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], text: str
) -> None:
    bad = file(tmp_path, **changes)
    with pytest.raises(FormatError, match=text):
        tuning.read(bad)
    monkeypatch.setenv(tuning.VARIABLE, str(bad))
    program, x = layer_program(LAYERS[0]), layer_images(LAYERS[0])
    with pytest.warns(UserWarning, match=r"table\.json: .*ignored"):
        engine = Engine(program)
    np.testing.assert_array_equal(engine(x), program.reference(x))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "\x00\xff", "[" * 10000])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    bad = tmp_path / "table.json"
    bad.write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=r"table\.json"):
        tuning.read(bad)
    with pytest.raises(FormatError, match=r"none\.json"):
        tuning.read(tmp_path / "none.json")


def test_bad_tables_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not above 0"):
        tuning.save({"avx2": {"large": {"2x2": {"byte": -1.0}}}}, tmp_path / "table.json")
    assert not list(tmp_path.iterdir())


def test_the_users_table_lies_in_the_cache_and_can_be_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(tuning.VARIABLE)
    assert tuning.path().parent == tmp_path / "bitbranch"
    assert tuning.package_version() in tuning.path().name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.rates(ISAS[0]) == {}
    tuning.save(TABLE, tuning.path())
    assert tuning.rates(ISAS[0]) == TABLE[ISAS[0]]
    with tuning.off():
        assert tuning.rates(ISAS[0]) == {}
        assert os.environ[tuning.VARIABLE] == "off"
    assert tuning.VARIABLE not in os.environ
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "none.json"))
    with pytest.warns(UserWarning, match="no such file"):
        assert tuning.rates(ISAS[0]) == {}


def test_the_fastest_family_of_a_table() -> None:
    rates = {"large": {"2x2": {"dictionary": 1.0, "byte16": 2.0, "byte": 3.0}, "4x4": {"byte16": 2.0, "byte": 1.0}}}
    assert tuning.fastest(rates, "large", 2, 2, {"dictionary": 0, "byte16": 0}) == "byte16"
    assert tuning.fastest(rates, "large", 1, 2, {"dictionary": 0, "byte_signed": 0}) == "byte_signed"
    assert tuning.fastest(rates, "large", 3, 2, {"byte16": 0, "byte_unsigned": 0}) == "byte16"
    assert tuning.fastest(rates, "large", 3, 2, {"dictionary": 0, "byte16": 0}) is None
    assert tuning.fastest(rates, "large", 8, 2, {"byte16": 0}) is None
    assert tuning.fastest(rates, "small", 2, 2, {"byte16": 0}) is None


def families(engine: Engine, x: np.ndarray) -> list[str]:
    """Of the steps with multiply-accumulates, as tables name them."""
    return [tuning.named(row.family) for row in engine.profile(x, repeat=1).rows if row.macs]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_every_family_gives_the_same_integers(layer: Layer, isa: str) -> None:
    program = layer_program(layer)
    found = candidates_of(program, 1)
    assert set(found) <= set(KERNEL_FAMILIES) and found
    for batch in (1, 19):
        x = layer_images(layer, batch)
        expected = program.reference(x)
        for family in found:
            engine = Engine(program, isa=isa, families={"conv": family})
            assert families(engine, x)[0] == tuning.named(family)
            np.testing.assert_array_equal(engine(x), expected, err_msg=family)


@pytest.mark.usefixtures("planar_kernels")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_table_changes_the_family_and_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: Layer
) -> None:
    program, x = layer_program(layer), layer_images(layer)
    for wanted in candidates_of(program, 1):
        kinds = {f: 2.0 if wanted.startswith(f) and (f != "byte" or "_" in wanted) else 1.0 for f in tuning.FAMILIES}
        bits = {f"{a}x{w}": kinds for a in range(1, 9) for w in range(1, 9)}
        target = tmp_path / f"{wanted}.json"
        tuning.save({PLANAR[0]: dict.fromkeys(tuning.SHAPES, bits)}, target)
        monkeypatch.setenv(tuning.VARIABLE, str(target))
        engine = Engine(program, isa=PLANAR[0])
        taken = families(engine, x)[0]
        assert taken == tuning.named(wanted) or (wanted == "dictionary" and taken.startswith("sextets"))
        np.testing.assert_array_equal(engine(x), program.reference(x))


def test_families_can_be_forced_everywhere_and_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    program, x = layer_program(LAYERS[0]), layer_images(LAYERS[0])
    assert families(Engine(program, families={"*": "byte"}), x) == ["byte", "byte"]
    assert families(Engine(program, families={"*": "byte", "conv": "byte16"}), x) == ["byte16", "byte"]
    assert (
        families(Engine(layer_program(LAYERS[3]), families={"*": "linear"}), layer_images(LAYERS[3])) == ["linear"] * 2
    )
    monkeypatch.setenv("BITBRANCH_FAMILY", "byte16")
    assert families(Engine(program), x) == ["byte16", "byte16"]
    assert families(Engine(program, families={"last": "dictionary"}), x)[1] in DICTIONARIES


@examples(120)
@given(st.one_of(convolutions(channels=24, size=14), networks()), st.sampled_from(KERNEL_FAMILIES))
def test_forced_families_equal_the_reference(case: tuple[Any, np.ndarray], family: str) -> None:
    program, x = case
    expected = reference.run(program, x)
    for isa in ISAS:
        got = Engine(program, isa=isa, families={"*": family})(x)
        np.testing.assert_array_equal(got, expected, err_msg=f"{family}, {isa}")


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"none": "byte"}, "no convolution 'none'"),
        ({"conv": "magic"}, "'magic' is none of dictionary"),
        ({"*": "magic"}, "'magic' is none of dictionary"),
        ({"conv": "linear"}, "'linear' is not exact for 'conv', which has dictionary, xnor, byte16, byte_unsigned"),
        ({"conv": "byte_signed"}, "not exact"),
    ],
)
def test_impossible_families_are_refused(wanted: dict[str, str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Engine(layer_program(LAYERS[0]), families=wanted)


def test_tuning_measures_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "ACTIVATIONS", ("u2", "u8"))
    monkeypatch.setattr(tune, "WEIGHTS", ("t",))
    monkeypatch.setattr(tune, "REPEAT", 1)
    target = tmp_path / "folder" / "table.json"
    assert main(["tune", "--isa", PLANAR[0], "--out", str(target), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert tuning.read(target) == result["rates"]
    assert set(result["rates"][PLANAR[0]]) == set(tuning.SHAPES)
    assert set(result["rates"][PLANAR[0]]["large"]) == {"2x2", "8x2"}
    assert set(result["rates"][PLANAR[0]]["large"]["2x2"]) == {"dictionary", "xnor", "byte16", "byte"}
    assert "linear" in result["rates"][PLANAR[0]]["pixel"]["8x2"]
    assert main(["tune", "--isa", "mmx", "--out", str(target)]) == 2


# ---- profiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_has_a_ceiling(isa: str) -> None:
    core = engine_module._core()
    machine = core.Machine(isa, 1)
    for kernel in core.kernels(isa):
        seconds, macs = machine.kernel_rate(kernel, CEILING_TAPS, 3)
        assert seconds > 0
        assert macs == 3 * machine.kernel_rate(kernel, CEILING_TAPS, 1)[1] > 0
        assert macs % (CEILING_TAPS * kernel.outputs * kernel.pixels) == 0
        assert ceiling(core, isa, kernel.family, kernel.bits)
        with pytest.raises(ValueError, match="at least 1"):
            machine.kernel_rate(kernel, 0, 1)
    assert ceiling(core, isa, "no such family", 0) is None
    assert ceiling(core, isa, "dictionary", 7) is None


def test_a_profile_counts_everything_once() -> None:
    program, x = layer_program(LAYERS[0]), layer_images(LAYERS[0], 3)
    profile = Engine(program).profile(x, repeat=3)
    assert sum(row.macs for row in profile.rows) == 3 * program.macs
    assert 0 <= profile.glue <= 1
    assert profile.of_ceiling is not None and profile.of_ceiling > 0
    assert Profile.from_dict(json.loads(json.dumps(profile.as_dict()))) == profile


def test_a_profiles_table() -> None:
    rows = (
        ProfileRow("first", "dictionary", 2e-6, 400_000, 400.0),
        ProfileRow("second", "add", 1e-6, 0),
        ProfileRow("third", "linear", 6e-6, 600_000, 200.0),
    )
    profile = Profile(rows, 10e-6, 1)
    assert profile.glue == pytest.approx(0.2)
    assert profile.of_ceiling == pytest.approx((1 + 3) / 8)
    lines = profile.table().splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["first", "second", "third"]
    assert "20.0%" in lines[1] and "50 % of 400" in lines[1] and "200.0" in lines[1]
    assert lines[3].count("\u2588") == 24 and lines[1].count("\u2588") == 8
    assert "20.0 % outside the layers' arithmetic, of it 1.0 us outside all steps" in lines[4]
    assert "50 %" in lines[5]
    assert [line.split()[0] for line in profile.table(by_time=True).splitlines()[1:4]] == ["third", "first", "second"]
    assert Profile((ProfileRow("a", "unknown", 1e-6, 10),), 1e-6, 1).of_ceiling is None


def test_the_profile_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "net.bb"
    layer_program(LAYERS[0]).save(net)
    assert main(["profile", str(net), "--repeat", "2", "--batch", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 2 and len(result["steps"]) >= 3
    assert main(["profile", str(net), "--repeat", "2"]) == 0
    out = capsys.readouterr().out
    assert "of ceiling" in out and "the longest first" in out


def test_engines_need_no_home(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert tuning.rates("scalar") == {}
    assert main(["tune"]) == 2
    assert "there is no home folder for a table of rates; set XDG_CACHE_HOME" in capsys.readouterr().err
