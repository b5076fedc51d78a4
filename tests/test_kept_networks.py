"""The networks in the repository: small, with a card that is true, and the same in the engine and the reference."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitbranch import Engine, load, models
from bitbranch.runtime.engine import instruction_sets
from bitbranch.training import config, tasks
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
def test_the_card_says_what_the_network_does(file: Path, real_set: Callable[[str], Path]) -> None:
    """Its figure, measured again on all test pictures."""
    card, program = file.with_suffix(".md").read_text(), load(file)
    facts = dict(re.findall(r"\n\| ([^|]+) \| ([^|]+) \|", card))
    name, (_, height, width) = facts["Data"].split()[0].rstrip(";"), program.input.shape
    path = "" if name.startswith("scene") else str(real_set(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # two boxes of BCCD are empty
        task = tasks.read(config.Data(set=name, path=path, size=(height, width)))
    model, arguments = re.findall(r"`([^`]+)`", facts["Network"])
    known = inspect.signature(models.MODELS[model]).parameters
    given = {name: value for name, value in task.arguments().items() if name in known}
    network = models.build(model, given | json.loads(arguments))
    figure = task.score(network, Engine(program, threads=1))[task.figure]
    title = {"map": "mAP@0.5", "miou": "mIoU"}[task.figure]
    said = float(facts[title].split(" %")[0])
    assert abs(said - 100 * figure) < 0.015  # boxes are decoded in floats, which round by the machine
    assert facts["Data"].endswith(task.test.source)


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
