"""The networks in the repository: small, with a card that is true, and the same in the engine and the reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitbranch import Engine, load
from bitbranch.runtime.engine import instruction_sets
from bitbranch.vision import Detector, Segmenter

NETWORKS = Path(__file__).parents[1] / "networks"
FILES = sorted(NETWORKS.glob("*.bb"))


def test_every_network_has_a_card() -> None:
    assert {file.name.split("-")[0] for file in FILES} >= {"bccd", "camvid", "garments"}
    assert {file.stem for file in NETWORKS.glob("*.md")} - {"README"} == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_the_card_is_true(file: Path) -> None:
    card = file.with_suffix(".md").read_text()
    size = re.search(r"\| File \| ([\d,]+) bytes", card)
    assert size and int(size[1].replace(",", "")) == file.stat().st_size < 2_000_000
    assert re.search(r"outputs differ on 0 of \d+ images", card)
    for fact in ("Task", "Precision", "Data", "Trained", "Seed", "Licence", "Made by"):
        assert f"\n| {fact} | " in card
    assert (Detector if "| Task | detection |" in card else Segmenter)(file).classes


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_engine_is_the_reference(file: Path) -> None:
    program = load(file)
    (entry,) = program.inputs
    images = np.random.default_rng(0).integers(0, 256, (1, *entry.shape), dtype=np.uint8)
    expected = program.reference(images)
    for isa in instruction_sets():
        got = Engine(program, isa=isa, threads=1)(images)
        assert [a.tobytes() for a in outputs(got)] == [b.tobytes() for b in outputs(expected)], isa


def outputs(given: Any) -> tuple[Any, ...]:
    """Several outputs are a tuple, one is itself."""
    return given if isinstance(given, tuple) else (given,)
