"""What a quantized network costs, layer by layer: bits, branches, multiply-accumulates, bytes, accumulators."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import numpy.typing as npt
import torch
from torch import Tensor, nn

from .contract import CodeType, Kind, accumulator_bounds, branch_weights
from .layers import QUANTIZED, QuantizedLayer
from .swap import calibrate


@dataclass(frozen=True)
class LayerSummary:
    """One row of a :class:`Summary`.

    Attributes:
        name, type: of the layer.
        output: shape of its output for one image.
        weight, input: code types of weights and inputs; None where they are float.
        macs: multiply-accumulates for one image.
        weight_bytes: of the weights as a file packs them: at their bits, ternary weights five to a byte, float at 4.
        accumulator: largest possible magnitude of its accumulators; None in a layer with anything float, or that no
            integer program computes.
    """

    name: str
    type: str
    output: tuple[int, ...]
    weight: CodeType | None
    input: CodeType | None
    macs: int
    weight_bytes: int
    accumulator: int | None

    @property
    def branches(self) -> tuple[int, int] | None:
        """M x K binary branches of weights and inputs; None in a layer with anything float."""
        if self.weight is None or self.input is None:
            return None
        return len(branch_weights(self.weight)[0]), len(branch_weights(self.input)[0])

    def cells(self) -> list[str]:
        """Texts of one line of the table."""
        branches = "x".join(map(str, self.branches)) if self.branches else "-"
        accumulator = "-" if self.accumulator is None else f"{self.accumulator:,}"
        return [
            self.name,
            self.type,
            "x".join(map(str, self.output)),
            str(self.weight or "float"),
            str(self.input or "float"),
            branches,
            f"{self.macs:,}",
            f"{self.weight_bytes:,}",
            accumulator,
        ]


@dataclass(frozen=True)
class Summary:
    """The table of :func:`summary`; ``str()`` gives it as text."""

    layers: tuple[LayerSummary, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Packed bytes of all weights."""
        return sum(layer.weight_bytes for layer in self.layers)

    def __str__(self) -> str:
        head = ["layer", "type", "output", "weights", "inputs", "branches", "MACs", "bytes", "accumulator"]
        total = ["total", "", "", "", "", "", f"{self.macs:,}", f"{self.weight_bytes:,}", ""]
        rows = [head, *(layer.cells() for layer in self.layers), total]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        texts = 2  # the first columns are words, set left; the others numbers and types, set right
        lines = [
            "  ".join(c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        rule = "-" * len(lines[0])
        return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:-1], rule, lines[-1]))


@torch.no_grad()
def summary(network: nn.Module, example: npt.ArrayLike | Tensor | tuple[npt.ArrayLike | Tensor, ...]) -> Summary:
    """Bits, branches, multiply-accumulates, packed bytes and accumulator bounds of each convolution and linear layer.

    The network is not changed; where it has seen no data yet, ``example`` stands for it.

    Args:
        network: quantized, float or mixed.
        example: a batch ``[N, ...]`` of its input, a tensor on the network's device or an array; a tuple for several
            inputs.
    """
    inputs = tuple(torch.as_tensor(x) for x in (example if isinstance(example, tuple) else (example,)))
    trial = copy.deepcopy(network).eval()
    quantized = [m for m in trial.modules() if isinstance(m, QuantizedLayer)]
    if any(m.input_quantizer is not None and not m.input_quantizer.ready for m in quantized):
        calibrate(trial, [inputs])
    rows: dict[str, LayerSummary] = {}
    for name, layer in trial.named_modules():
        if isinstance(layer, QuantizedLayer) or type(layer) in QUANTIZED:
            layer.register_forward_hook(
                lambda layer, args, out, name=name: _enter(rows, _row(name, layer, args[0], out))
            )
    trial(*inputs)
    return Summary(tuple(rows.values()))


def _enter(rows: dict[str, LayerSummary], row: LayerSummary) -> None:
    """A row more; of a layer that is called again the multiply-accumulates."""
    before = rows.get(row.name)
    rows[row.name] = row if before is None else replace(row, macs=before.macs + row.macs)


def _row(name: str, layer: nn.Module, x: Tensor, out: Tensor) -> LayerSummary:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    # Every weight of a row meets each output position once; in a transposed convolution, each input position.
    per_row = weight[0].numel()
    macs = (x if transposed else out)[0].numel() * per_row
    weight_type = input_type = accumulator = None
    count = weight.numel()
    if isinstance(layer, QuantizedLayer):
        input_type = layer.input_quantizer.code_type if layer.input_quantizer is not None else None
        if layer.weight_quantizer is not None:
            weight_type = layer.weight_quantizer.code_type
            count = layer.weight_quantizer.stored(layer.outputs_first(weight))
            if input_type is not None and not layer.obstacle:
                values = layer.integer_weight()[0]
                lo, hi = accumulator_bounds(values.cpu().numpy(), input_type)
                accumulator = int(max(abs(lo).max(), abs(hi).max()))
    return LayerSummary(
        name,
        type(layer).__name__,
        tuple(out.shape[1:]),
        weight_type,
        input_type,
        macs,
        _packed_bytes(count, weight_type),
        accumulator,
    )


def _packed_bytes(count: int, weight_type: CodeType | None) -> int:
    if weight_type is None:
        return 4 * count
    return math.ceil(count / 5) if weight_type.kind is Kind.TERNARY else math.ceil(count * weight_type.bits / 8)
