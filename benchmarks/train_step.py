"""What a training step takes: float beside low-bit, float32 beside bfloat16; median of interleaved steps.

python benchmarks/train_step.py --network resnet20 --batch 128 --threads 2 --schemes tsq:wt-a2 mbn:w2-a2
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import bitbranch as bb
from bitbranch import models
from bitbranch.reporting.machine import describe_machine, describe_versions
from bitbranch.training.loop import Training
from bitbranch.training.objectives import Classification
from bitbranch.training.optimization import PRECISIONS, Settings

NETWORKS = {"resnet20": ("resnet_cifar", {"depth": 20}), "vgg_small": ("vgg_small", {})}


class Steps:
    """One training, taken a step at a time on the same random images."""

    def __init__(self, network: str, scheme: str, precision: str, batch: int) -> None:
        torch.manual_seed(0)
        model, arguments = NETWORKS[network]
        net = models.build(model, arguments)
        net = net if scheme == "float" else bb.quantize(net, scheme)
        data = [(torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,)))]
        self.name, self.precision, self.seconds = f"{scheme} {precision}", precision, list[float]()
        settings = Settings(epochs=10**6, lr=1e-3, optimizer="sgd", precision=precision, schedule="constant")
        self.course = Training(net, data, settings, Classification())

    def take(self, count: int) -> None:
        begun = time.perf_counter()

        def on_step(step: int) -> None:
            nonlocal begun
            self.seconds.append(time.perf_counter() - begun)
            if len(self.seconds) % (count + 1) == 0:
                raise StopIteration
            begun = time.perf_counter()

        try:
            self.course.run(on_step=on_step)
        except StopIteration:
            self.course.sums = [0.0, 0.0, 0.0]
        self.course.step = len(self.course.history)
        self.seconds = [s for i, s in enumerate(self.seconds) if i % (count + 1)]  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--schemes", nargs="+", default=["tsq:wt-a2"])
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=list(PRECISIONS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(describe_machine()["processor"], describe_versions(("torch",)), f"{options.threads} thread(s)")
    runs = [
        Steps(options.network, scheme, precision, options.batch)
        for precision in options.precision
        for scheme in ["float", *options.schemes]
    ]
    times: dict[str, list[float]] = {run.name: [] for run in runs}
    for _ in range(options.rounds):
        for run in runs:
            run.seconds = []
            run.take(options.steps)
            times[run.name] += run.seconds
    for run in runs:
        name, seconds = run.name, times[run.name]
        own = statistics.median(times[f"float {run.precision}"])
        low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
        rate, ratio = 1e3 * options.batch / median, median / (1e3 * own)
        print(
            f"{options.network} batch {options.batch} {name}: {median:.0f} ms ({low:.0f}-{high:.0f}), "
            f"{rate:.0f} images/s, {ratio:.2f} times float {run.precision}"
        )


if __name__ == "__main__":
    main()
