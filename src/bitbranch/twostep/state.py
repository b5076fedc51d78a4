"""Solved layers in a folder, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..disk import write_bytes
from ..errors import InputError

KEY = "run.txt"


class RunKey:
    """What a run is made of, as a short text: two runs with the same key give the same result."""

    def __init__(self, *settings: object) -> None:
        self.digest = hashlib.sha256(repr(settings).encode())

    def add(self, tensor: Tensor) -> None:
        """Take in a tensor."""
        self.digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        self.digest.update(tensor.detach().cpu().contiguous().numpy().data)

    def add_network(self, network: nn.Module) -> None:
        """Take in all parameters and buffers."""
        for name, tensor in network.state_dict().items():
            self.digest.update(name.encode())
            self.add(tensor)

    def text(self) -> str:
        """64 hexadecimal digits."""
        return self.digest.hexdigest()


class State:
    """The folder of a run.

    Args:
        folder: made if it is not there.
        key: of the run.

    Raises:
        InputError: the folder holds another run, or cannot be made or read.
    """

    def __init__(self, folder: Path, key: RunKey) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            known = folder / KEY
            if not known.exists():
                if strange := sorted(folder.glob("*.pt")):
                    raise InputError(f"{folder}: holds {strange[0].name} of no known run; take an empty folder")
                write_bytes(known, key.text().encode())
            if known.read_text() != key.text():
                raise InputError(f"{folder}: holds a run with other images, another network or other settings")
        except OSError as error:
            raise InputError(f"{folder}: cannot hold the state of a run ({error.strerror})") from None

    def load(self, name: str) -> dict[str, object] | None:
        """What was stored under a name, or None.

        Raises:
            InputError: a damaged file.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            found: dict[str, object] = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        except Exception as error:  # damaged bytes make the unpickler raise nearly anything
            raise InputError(f"{path}: damaged ({' '.join(str(error).split())[:80]}); remove it") from None
        return found

    def store(self, name: str, content: Mapping[str, object]) -> None:
        """Keep tensors and plain values under a name; interrupted, nothing is kept."""
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        write_bytes(self._path(name), buffer.getvalue())

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"
