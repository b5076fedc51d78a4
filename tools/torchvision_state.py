"""Write the names and shapes of torchvision's parameters, with which the tests compare this project's networks.

torchvision's compiled operations need a certain build of torch; its networks do not. So its wheel is unpacked, not
installed:

    pip download torchvision --no-deps --dest /tmp/wheel
    python -m zipfile -e /tmp/wheel/*.whl /tmp/wheel
    PYTHONPATH=/tmp/wheel python tools/torchvision_state.py > tests/torchvision_state.txt
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

NETWORKS = (
    "alexnet", "googlenet", "mobilenet_v2", "resnet18", "resnet34", "resnet50",
    "vgg11", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19",
)  # fmt: skip


def lines(network: nn.Module) -> list[str]:
    """``name shape`` of each parameter and buffer; ``name.* C`` stands for a BatchNorm's five of C channels."""
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    out = []
    for name, tensor in network.state_dict().items():
        owner, _, part = name.rpartition(".")
        if owner not in norms:
            out.append(f"{name} {'x'.join(map(str, tensor.shape))}")
        elif part == "weight":
            out.append(f"{owner}.* {len(tensor)}")
    return out


def main() -> None:
    """Print one section for each network."""
    torch.library.register_fake = lambda *args, **options: lambda function: function  # of operations that are absent
    import torchvision

    print(f"# torchvision {torchvision.__version__}, by tools/torchvision_state.py")
    warnings.simplefilter("ignore")
    with torch.device("meta"):
        for name in NETWORKS:
            network = getattr(torchvision.models, name)(weights=None)
            print(f"[{name}] {sum(p.numel() for p in network.parameters())}", *lines(network), sep="\n")


if __name__ == "__main__":
    main()
