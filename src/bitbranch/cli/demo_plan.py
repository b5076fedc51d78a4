"""How large the demo is: which images, which network, how many epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..data import Dataset, fashion_mnist


@dataclass(frozen=True)
class Plan:
    """The size of a demo.

    Attributes:
        full: take the full data set.
        train, test: take so many images at most; ``None`` is all.
        stages, hidden: widths of the network, see :func:`bitbranch.models.vgg`.
        float_epochs: of the float network.
        codes_epochs, tuning_epochs: of two-step quantization: step 1, and training after step 2.
        two_bit_epochs, one_bit_epochs: of the multi-branch networks.
        solver_images: images that step 2 solves from.
        verify_images: images on which every layer of every executor is compared.
        timing_rounds: turns of each executor in the latency measurement.
    """

    full: bool = False
    train: int | None = None
    test: int | None = None
    stages: Sequence[Sequence[int]] = ((32,), (64,), (96,))
    hidden: int = 512
    float_epochs: int = 7
    codes_epochs: int = 4
    tuning_epochs: int = 3
    two_bit_epochs: int = 7
    one_bit_epochs: int = 5
    solver_images: int = 4000
    verify_images: int = 64
    timing_rounds: int = 9

    @property
    def epochs(self) -> dict[str, int]:
        """Epochs by training, for reports."""
        numbers = asdict(self).items()
        return {key.removesuffix("_epochs"): number for key, number in numbers if key.endswith("_epochs")}

    def data(self) -> tuple[Dataset, Dataset]:
        """Training and test images.

        Raises:
            InputError: see :func:`bitbranch.data.fashion_mnist.load`.
        """
        train, test = (fashion_mnist.load(split, full=self.full) for split in ("train", "test"))
        return train.spread(self.train or len(train)), test.spread(self.test or len(test))


PLANS = {
    "standard": Plan(),
    "full": Plan(
        full=True, float_epochs=15, codes_epochs=8, tuning_epochs=8, two_bit_epochs=15, one_bit_epochs=20,
        solver_images=12_000, verify_images=256, timing_rounds=25,
    ),
    "quick": Plan(
        train=1500, test=300, stages=((8,), (16,), (16,)), hidden=32, float_epochs=2, codes_epochs=1, tuning_epochs=1,
        two_bit_epochs=1, one_bit_epochs=1, solver_images=200, verify_images=16, timing_rounds=3,
    ),
}  # fmt: skip
"""The sizes that the command offers; ``quick`` shows the way, not the accuracy."""
