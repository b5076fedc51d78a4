"""Make the Fashion-MNIST sample inside the package from the full set.

The first 1,200 training images and the first 200 test images of each class, in the set's order: balanced, and the
same for everybody.

    BITBRANCH_DATA=/path/to/fashion-mnist python tools/make_sample.py
"""

from __future__ import annotations

import numpy as np

from bitbranch.data import fashion_mnist
from bitbranch.data.idx import write_idx_xz

PER_CLASS = {"train": 1200, "test": 200}


def main() -> None:
    """Write the four files and print their sizes."""
    fashion_mnist.SAMPLE.mkdir(exist_ok=True)
    total = 0
    for split, per_class in PER_CLASS.items():
        full = fashion_mnist.load(split, full=True)
        firsts = [np.flatnonzero(full.labels == c)[:per_class] for c in range(len(full.classes))]
        sample = full.take(np.sort(np.concatenate(firsts)))
        stem = fashion_mnist.SAMPLE / fashion_mnist.FILES[split]
        total += write_idx_xz(stem.with_name(f"{stem.name}-images-idx3-ubyte.xz"), sample.images[:, 0])
        total += write_idx_xz(stem.with_name(f"{stem.name}-labels-idx1-ubyte.xz"), sample.labels.astype(np.uint8))
    print(f"{fashion_mnist.SAMPLE}: {total:,} bytes")


if __name__ == "__main__":
    main()
