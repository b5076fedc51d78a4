"""How long step 2 of two-step quantization takes, and in how much memory.

    python benchmarks/solve.py fc6        # AlexNet's fc6, 9,216 inputs and 4,096 outputs, from 20,000 samples
    python benchmarks/solve.py resnet18   # the whole of ResNet-18 from 1,024 images of 224x224

Weights and images are random; that makes no difference to the time but through how many weights change. Prints the
machine, a line per layer, and in the end seconds, processor seconds and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitbranch import models, twostep
from bitbranch.reporting.machine import describe_machine, describe_versions


@dataclass(frozen=True)
class Random:
    """Batches of random images, the same at every pass."""

    shape: tuple[int, ...]
    count: int
    size: int

    def __len__(self) -> int:
        return self.count // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(len(self)):
            yield torch.randn(self.size, *self.shape, generator=generator), torch.zeros(self.size, dtype=torch.int64)


def fc6(inputs: int = 9216, outputs: int = 4096, samples: int = 20_000) -> nn.Module:
    """One linear layer with 2-bit codes before and behind it, solved."""
    first = nn.Linear(inputs, outputs, bias=False)
    net = nn.Sequential(first, nn.BatchNorm1d(outputs), nn.ReLU(), nn.Linear(outputs, 10))
    return convert(net, Random((inputs,), samples, min(500, samples)), first="tsq:wt-a2", last="tsq:w8-a2")


def resnet18(images: int = 1024) -> nn.Module:
    """ResNet-18, solved."""
    return convert(models.resnet18(), Random((3, 224, 224), images, min(32, images)))


def convert(net: nn.Module, loader: Random, first: str = "w8a8", last: str = "w8a8") -> nn.Module:
    """Measure the float network's BatchNorm statistics, as training would have, and convert it."""
    twostep.reestimate_batchnorm(net.eval(), [next(iter(loader))])
    return twostep.convert(net, loader, "tsq:wt-a2", first=first, last=last)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fc6", "resnet18"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    print(json.dumps(describe_machine() | describe_versions() | {"threads": options.threads}))
    wall, busy = time.perf_counter(), time.process_time()
    {"fc6": fc6, "resnet18": resnet18}[options.what]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.what}: {time.perf_counter() - wall:.0f} s, {time.process_time() - busy:.0f} processor seconds, "
        f"peak {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
