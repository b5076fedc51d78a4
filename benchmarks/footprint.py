"""File size, memory and time until ready of a network, in fresh processes; and how it scales with threads and batch.

python benchmarks/footprint.py [resnet18] [--scheme tsq:wt-a2 ..]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bitbranch.bench import command, footprint, networks
from bitbranch.reporting.machine import describe_machine


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", nargs="?", default="resnet18")
    parser.add_argument("--scheme", nargs="+", default=["tsq:wt-a2"])
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        say = lambda text: print(text, file=sys.stderr)  # noqa: E731
        network = networks.by_name(arguments.model, {}, arguments.scheme, None, Path(folder), say)
        for scheme, file in network.programs.items():
            f = footprint.measure(file)
            print(
                f"{arguments.model} {scheme}: file {f['bytes'] / 1e6:.2f} MB; load and plan {1e3 * f['load']:.0f} ms, "
                f"first call {1e3 * f['first']:.1f} ms, second {1e3 * f['second']:.1f} ms; memory of a run "
                f"{f['memory'] / 1e6:.1f} MB, {f['beyond_file'] / 1e6:.1f} MB beyond the file"
            )
        files = [str(file) for file in network.programs.values()]
        result = command.run(command.Options(files, peers=(), threads=(1, 2), batches=(1, 8), seconds=0.5), say)
        print(result["text"])


if __name__ == "__main__":
    main()
