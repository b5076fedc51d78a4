"""The README's example runs as it stands, on fewer images and epochs."""

import re
from pathlib import Path

import pytest

from bitbranch.data import fashion_mnist

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    load = fashion_mnist.load
    monkeypatch.setattr(fashion_mnist, "load", lambda split: load(split).spread(512))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(re.sub(r"epochs=\d+", "epochs=1", example), names)
    assert " 0 mismatches" in capsys.readouterr().out
    assert (tmp_path / "net.bb").stat().st_size > 0
    assert names["logits"].shape == (100, 10)  # type: ignore[attr-defined]
