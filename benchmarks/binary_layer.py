"""The 3x3 binary convolution against OpenVINO's BinaryConvolution, its node alone and its whole graph, one thread.

The engine's step reads packed codes and writes packed codes, thresholds included; its call goes from float32 to
float32, as OpenVINO's graph does. OpenVINO's node time is from its own performance counters.

    python benchmarks/binary_layer.py [--isa native avx512]
"""

from __future__ import annotations

import argparse
import sys

from bitbranch.bench import binary_layer, levels
from bitbranch.bench.compare import processors
from bitbranch.reporting.machine import describe_machine, describe_versions
from bitbranch.runtime.engine import instruction_sets


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--isa", nargs="+", default=["native"], metavar="LEVEL", help=", ".join(levels.LEVELS))
    rows = []
    print(describe_machine(), describe_versions(("openvino",)))
    for level in parser.parse_args().isa:
        isa = levels.engine_set(level, instruction_sets())
        if isa is None:
            print(f"the engine has no instruction set {level} here")
            continue
        rows += binary_layer.measure(isa, level, processors(1), lambda text: print(text, file=sys.stderr))
    print(binary_layer.text(rows))


if __name__ == "__main__":
    main()
