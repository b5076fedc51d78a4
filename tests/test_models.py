"""The networks: torchvision's names, published sizes, and that each quantizes, compiles and verifies."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import bitbranch as bb
from bitbranch import InputError, models
from bitbranch.cli.main import main
from bitbranch.models.ssd import SSD
from bitbranch.runtime.container import bit_budget
from bitbranch.training import checkpoint
from bitbranch.training.checkpoint import Recipe

Options = Mapping[str, object]
Shape = tuple[int, int, int]

SMALL: dict[str, tuple[str, Options, Shape]] = {
    "alexnet": ("alexnet", {"width": 1 / 16, "num_classes": 7}, (3, 224, 224)),
    "alexnet-norm": ("alexnet", {"width": 1 / 16, "num_classes": 7, "batch_norm": True}, (3, 224, 224)),
    "alexnet-groups": ("alexnet_groups", {"width": 1 / 16, "num_classes": 7, "image_size": 99}, (3, 99, 99)),
    "alexnet-groups-plain": (
        "alexnet_groups",
        {"width": 1 / 16, "num_classes": 7, "image_size": 67, "norm": "none"},
        (3, 67, 67),
    ),
    "vgg": ("vgg", {"stages": [[4], [6, 8]], "hidden": 9, "num_classes": 7, "image_size": 16}, (3, 16, 16)),
    "vgg-small": ("vgg_small", {"width": 1 / 16, "image_size": 16}, (3, 16, 16)),
    "vgg16": ("vgg16_bn", {"width": 1 / 32, "num_classes": 7}, (3, 224, 224)),
    "vgg11-plain": (
        "vgg_imagenet",
        {"depth": 11, "width": 1 / 32, "num_classes": 7, "batch_norm": False},
        (3, 224, 224),
    ),
    "resnet18": ("resnet18", {"width": 1 / 8, "num_classes": 7}, (3, 64, 64)),
    "resnet34": ("resnet34", {"width": 1 / 16, "num_classes": 7}, (3, 32, 32)),
    "resnet50": ("resnet50", {"width": 1 / 16, "num_classes": 7}, (3, 32, 32)),
    "resnet20-a": ("resnet_cifar", {"width": 0.5}, (3, 16, 16)),
    "resnet20-b": ("resnet_cifar", {"width": 0.5, "shortcut": "B"}, (3, 16, 16)),
    "googlenet": ("googlenet", {"width": 1 / 8, "num_classes": 7}, (3, 64, 64)),
    "mobilenet": ("mobilenet_v2", {"width": 1 / 8, "num_classes": 7}, (3, 64, 64)),
    "unet-transposed": ("unet", {"base": 4, "depth": 2}, (3, 24, 32)),
    "unet-nearest": ("unet", {"base": 4, "depth": 2, "up": "nearest"}, (3, 24, 32)),
    "unet-bilinear": ("unet", {"base": 4, "depth": 2, "up": "bilinear"}, (3, 24, 32)),
    "unet-over-resnet18": ("trunk_unet", {"width": 1 / 8, "num_classes": 5}, (3, 45, 61)),
    "unet-over-mobilenet": (
        "trunk_unet",
        {"width": 1 / 8, "num_classes": 5, "trunk": "mobilenet_v2"},
        (3, 34, 35),
    ),
    "fcn-resnet18": ("fcn", {"width": 1 / 8, "num_classes": 5}, (3, 45, 61)),
    "fcn-mobilenet": (
        "fcn",
        {"width": 1 / 8, "num_classes": 5, "trunk": "mobilenet_v2", "stride": 4},
        (3, 34, 35),
    ),
    "deeplab-16": ("deeplab", {"width": 1 / 8, "num_classes": 5, "rates": (1, 2, 3)}, (3, 45, 61)),
    "deeplab-8": ("deeplab", {"width": 1 / 8, "num_classes": 5, "output_stride": 8, "rates": (2,)}, (3, 48, 38)),
    "ssd-resnet18": ("ssd", {"width": 1 / 8, "image_size": 64, "num_classes": 5}, (3, 64, 64)),
    "ssd-mobilenet": (
        "ssd",
        {"width": 1 / 8, "image_size": 96, "num_classes": 5, "trunk": "mobilenet_v2"},
        (3, 96, 96),
    ),
    "ssd-vgg-small": ("ssd", {"width": 1 / 16, "image_size": 48, "num_classes": 5, "trunk": "vgg_small"}, (3, 48, 48)),
}
"""Every network, narrow and on small images: name, options, image."""

ROUNDED = (
    "resnet",
    "mobilenet",
    "googlenet",
    "unet-bilinear",
    "unet-over",
    "fcn",
    "deeplab",
    "ssd-resnet18",
    "ssd-mobilenet",
)
"""Networks with residual sums, averages or streams of other scales, where a code may be rounded otherwise."""

SCHEMES = ("tsq:wt-a2", "mbn:w1-a1", "mbn:w2-a2", "lsq:w4-a4", "lsq:w8-a8", "mixed")


def small(case: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network of :data:`SMALL` with BatchNorms as after training, some slopes negative, and four images."""
    name, options, shape = SMALL[case]
    torch.manual_seed(seed)
    network = models.build(name, options)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.weight.copy_(torch.randn_like(module.weight).abs() + 0.3)
                module.weight[::5].neg_()
                module.bias.copy_(0.3 * torch.randn_like(module.bias))
    return network, torch.randn(4, *shape)


def flat(outputs: object) -> list[Tensor]:
    """The tensors of a network's output, whatever holds them."""
    return [outputs] if isinstance(outputs, Tensor) else [t for part in outputs for t in flat(part)]  # type: ignore[attr-defined]


# ---- structure


def test_every_name_is_covered_here() -> None:
    assert models.names() == sorted(models.MODELS) == sorted({name for name, _, _ in SMALL.values()} | {"vgg_imagenet"})


def torchvision_state() -> Iterator[tuple[str, int, dict[str, tuple[int, ...]]]]:
    """Name, number of parameters and shapes of the state of torchvision's networks; see tools/torchvision_state.py."""
    text = Path(__file__).with_name("torchvision_state.txt").read_text()
    for name, count, body in re.findall(r"\[(\w+)\] (\d+)\n([^\[]*)", text):
        shapes: dict[str, tuple[int, ...]] = {}
        for line in body.splitlines():
            key, size = line.split(" ")
            shape = tuple(map(int, size.split("x")))
            if key.endswith(".*"):
                parts = ("weight", "bias", "running_mean", "running_var")
                shapes |= {key.replace("*", part): shape for part in parts}
                shapes[key.replace("*", "num_batches_tracked")] = ()
            else:
                shapes[key] = shape
        yield name, int(count), shapes


OURS = {
    "googlenet": ("googlenet", {"aux_logits": True}),
    **{
        f"vgg{n}{s}": ("vgg_imagenet", {"depth": n, "batch_norm": bool(s)})
        for n in (11, 13, 16, 19)
        for s in ("", "_bn")
    },
}
"""Where the name or the options differ from torchvision's."""


@pytest.mark.parametrize(
    ("name", "count", "state"), list(torchvision_state()), ids=[row[0] for row in torchvision_state()]
)
def test_names_and_shapes_are_torchvisions(name: str, count: int, state: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        network = models.build(*OURS.get(name, (name, {})))
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == state
    assert sum(p.numel() for p in network.parameters()) == count
    weights = {key: torch.empty(shape, device="meta") for key, shape in state.items()}
    network.load_state_dict(weights, strict=True)


PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vgg16_bn": 138_365_992,
    "alexnet": 61_100_840,
    "alexnet_groups": 60_965_224,
    "googlenet": 6_624_904,
    "mobilenet_v2": 3_504_872,
}
"""Parameters, as torchvision's documentation and (in two groups) Caffe's model zoo have them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        network = models.build(name, {"norm": "response"} if name == "alexnet_groups" else {})
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[name]


STATED = re.compile(
    r"``([^`]*)``: ([\d,]+) parameters and ([\d,]+) multiply-accumulates for images ``\[N, (\d+), (\d+), (\d+)\]``"
)


@pytest.mark.parametrize("name", models.names())
def test_documented_figures(name: str) -> None:
    stated = STATED.findall(" ".join((models.MODELS[name].__doc__ or "").split()))
    assert stated
    for options, parameters, macs, *shape in stated:
        with torch.device("meta"):
            network = models.build(name, eval(f"dict({options})"))
            images = torch.empty(1, *map(int, shape))
        assert sum(p.numel() for p in network.parameters()) == int(parameters.replace(",", "")), options
        assert bb.summary(network, images).macs == int(macs.replace(",", "")), options


def test_macs_of_resnet18_by_hand() -> None:
    """Table 1 of arXiv 1512.03385: 1.8 10^9, from the sizes of each stage."""
    blocks = sum(4 * (64 << s) ** 2 * 9 * (56 >> s) ** 2 for s in range(4))  # four 3x3 convolutions of equal widths
    halved = sum(((64 << s) * (32 << s) * (9 + 1) - (64 << s) ** 2 * 9) * (56 >> s) ** 2 for s in range(1, 4))
    stem = 64 * 3 * 49 * 112**2 + 512 * 1000
    with torch.device("meta"):
        assert bb.summary(models.resnet18(), torch.empty(1, 3, 224, 224)).macs == stem + blocks + halved


@pytest.mark.parametrize("case", SMALL)
def test_shapes_gradients_and_seeds(case: str) -> None:
    name, options, shape = SMALL[case]
    network, x = small(case)
    network.train()
    sum(t.square().mean() for t in flat(network(x))).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
    silent = [k for k, p in network.named_parameters() if not p.grad.any()]  # type: ignore[union-attr]
    assert len(silent) <= 0.05 * len(list(network.parameters())), silent
    again, _ = small(case)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), small(case)[0].parameters(), strict=True))
    with torch.no_grad():
        outputs = flat(again.eval()(x[:2]))
    classes = options.get("num_classes")
    if name == "unet":
        assert outputs[0].shape == (2, 2, *shape[1:])
    elif name in ("fcn", "deeplab", "trunk_unet"):
        assert [tuple(t.shape) for t in outputs] == [(2, 5, *shape[1:])]
    elif name == "ssd":
        assert isinstance(again, SSD)
        maps = len(again.sizes)
        for a, size, k, b in zip(again.boxes, again.sizes, outputs[:maps], outputs[maps:], strict=True):
            assert k.shape == (2, a * 5, size, size) and b.shape == (2, a * 4, size, size)
    else:
        assert [tuple(t.shape) for t in outputs] == [(2, classes or 10)]


@pytest.mark.parametrize("case", ["alexnet", "vgg16", "resnet18", "resnet20-a", "googlenet", "mobilenet"])
def test_other_image_sizes(case: str) -> None:
    network, x = small(case)
    size = x.shape[2] // 2
    with torch.no_grad():
        assert network.eval()(x[:1, :, :size, : size + 6]).shape == network(x[:1]).shape


def test_ssd300_has_the_papers_maps() -> None:
    with torch.device("meta"):
        for trunk in ("resnet18", "mobilenet_v2"):
            network = models.ssd(trunk=trunk).eval()
            assert network.sizes == [38, 19, 10, 5, 3, 1] and network.boxes == [4, 6, 6, 6, 4, 4]
            classes, boxes = network(torch.empty(1, 3, 300, 300))
            assert sum(t.numel() for t in boxes) == 4 * 8732  # section 2.1: 8732 default boxes
            assert sum(t.numel() for t in classes) == 21 * 8732


@pytest.mark.parametrize(("stride", "maps"), [(32, 1), (16, 2), (8, 3), (4, 4), (2, 5)])
def test_fcn_reads_maps_from_its_stride_on(stride: int, maps: int) -> None:
    with torch.device("meta"):
        for trunk in ("resnet18", "mobilenet_v2"):
            network = models.fcn(trunk=trunk, stride=stride)
            assert len(network.scores) == maps
            shapes = [m.shape[2:] for m in network.trunk.maps(torch.empty(1, 3, 96, 64))][-maps:]
            assert shapes == [(96 // s, 64 // s) for s in (2, 4, 8, 16, 32) if s >= stride]


def test_auxiliary_classifiers_are_for_training() -> None:
    network = models.googlenet(width=1 / 16, num_classes=3, aux_logits=True)
    x = torch.randn(2, 3, 64, 64)
    assert [tuple(t.shape) for t in network.train()(x)] == [(2, 3)] * 3
    assert network.eval()(x).shape == (2, 3)


def test_option_a_is_the_padded_identity() -> None:
    network = models.resnet_cifar(width=0.25)
    x = torch.randn(2, 4, 6, 6)
    out = network.layer2[0].downsample(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2]) and not out[:, 4:].any()


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("lenet", {}, "model 'lenet': expected one of alexnet, alexnet_groups, .*vgg_small"),
        ("resnet18", {"depth": 18}, "unexpected keyword argument 'depth'"),
        ("resnet18", {"width": 0.0}, "width must be positive"),
        ("resnet_cifar", {"depth": 21}, r"depth must be 6 n \+ 2"),
        ("resnet_cifar", {"shortcut": "C"}, 'shortcut must be "A" or "B"'),
        ("vgg_imagenet", {"depth": 12}, "depth must be one of 11, 13, 16, 19"),
        ("alexnet_groups", {"norm": "layer"}, 'norm must be "batch", "response" or "none"'),
        ("alexnet_groups", {"image_size": 66}, "at least 67"),
        ("unet", {"up": "cubic"}, 'up must be "transposed"'),
        ("unet", {"depth": 0}, "must be at least 1"),
        ("fcn", {"trunk": "vgg_small"}, 'fcn: trunk must be "resnet18" or "mobilenet_v2"'),
        ("fcn", {"stride": 64}, "stride must be 2, 4, 8, 16 or 32"),
        ("trunk_unet", {"trunk": "vgg16"}, 'trunk_unet: trunk must be "resnet18"'),
        ("deeplab", {"output_stride": 4}, "output_stride must be 8, 16 or 32"),
        ("deeplab", {"rates": (1, 0)}, "rates must be at least 1"),
        ("ssd", {"trunk": "vgg16"}, "trunk must be"),
        ("ssd", {"boxes": [4, 4]}, "one positive number for each of 6 feature maps"),
    ],
)
def test_wrong_options_are_refused(name: str, options: Options, text: str) -> None:
    with pytest.raises(InputError, match=text):
        models.build(name, options)


def test_unet_refuses_images_that_it_cannot_halve() -> None:
    with pytest.raises(InputError, match=r"multiples of 4, got \(18, 16\)"):
        models.unet(base=2, depth=2)(torch.zeros(1, 3, 18, 16))


# ---- quantized and compiled


def quantized(network: nn.Module, scheme: str, x: Tensor) -> nn.Module:
    """The network quantized, its statistics and steps from ``x``; ``mixed`` goes through the schemes layer by layer."""
    layers = {}
    if scheme == "mixed":
        names = [n for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
        choices = ("lsq:w4-a4", "tsq:wt-a2", "uniform:w8-a8", "hwgq:w1-a3", "lsq:w2-a2")
        layers = {name: choices[i % len(choices)] for i, name in enumerate(names[1:-1])}
        scheme = "tsq:wt-a2"
    q = bb.quantize(network, scheme, layers=layers).train()
    with torch.no_grad():
        for _ in range(2):
            q(x)
    bb.calibrate(q.eval(), [x])
    return q


def check(case: str, scheme: str) -> None:
    """Engine and reference equal in every bit; torch too, but for roundings of sums and averages."""
    network, x = small(case)
    q = quantized(network, scheme, x)
    program = bb.compile(q, x[:1])
    result = bb.verify(q, program, [x[:2]], engines=[bb.Engine(program)])
    assert all(engine.values.differing == 0 for engine in result.engines), str(result)
    if not case.startswith(ROUNDED):
        assert result.mismatches == 0, str(result)
    # A stream's rounding moves few codes; what follows from those grows from layer to layer in an untrained network
    # of one bit, where every code is as good as its neighbour.
    moved = [layer.codes.differing / layer.codes.compared for layer in result.layers if layer.codes.differing]
    assert not moved or moved[0] <= 0.01, str(result)
    compared = sum(layer.codes.compared for layer in result.layers)
    assert result.codes_differing <= 0.05 * compared or "w1-a1" in scheme, str(result)


ROTATED = [
    (case, SCHEMES[(i + turn) % len(SCHEMES)]) for i, case in enumerate(SMALL) for turn in ((0, 3) if i % 2 else (1,))
]
"""Each network with one scheme or two, each scheme with several networks."""


def pairs() -> Iterator[object]:
    """All networks with all schemes; those that are not in :data:`ROTATED` are long."""
    for case in SMALL:
        for scheme in SCHEMES:
            marks = [] if (case, scheme) in ROTATED else [pytest.mark.long]
            yield pytest.param(case, scheme, marks=marks, id=f"{case}-{scheme}")


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:.*reads signs")
@pytest.mark.parametrize(("case", "scheme"), list(pairs()))
def test_networks_compile_and_verify(case: str, scheme: str) -> None:
    check(case, scheme)


def test_checkpoints_rebuild_networks_by_name(tmp_path: Path) -> None:
    recipe = Recipe("resnet_cifar", {"depth": 8, "width": 0.25, "shortcut": "B"}, (3, 16, 16), "mbn:w2-a2")
    network, x = recipe.build(), torch.randn(4, 3, 16, 16)
    network.train()(x)
    checkpoint.save(tmp_path / "net.pt", recipe, network)
    loaded, again = checkpoint.load(tmp_path / "net.pt")
    assert loaded == recipe and torch.equal(again(x), network.eval()(x))


FULL: dict[str, Options] = {
    "alexnet": {"batch_norm": True},
    "googlenet": {},
    "mobilenet_v2": {},
    "resnet18": {},
    "vgg16_bn": {},
}


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    FULL,
)
def test_full_size(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At 224x224 the file keeps its budget and gives the program back, and the engine equals the reference."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 224, 224)
    q = quantized(models.build(name, FULL[name]), "tsq:wt-a2", x)
    times, start = {}, time.perf_counter()
    program = bb.compile(q, x[:1])
    times["compile"], start = time.perf_counter() - start, time.perf_counter()
    size = program.save(tmp_path / "net.bb")
    times["save"], start = time.perf_counter() - start, time.perf_counter()
    loaded = bb.load(tmp_path / "net.bb")
    times["load"], start = time.perf_counter() - start, time.perf_counter()
    engine = bb.Engine(loaded)
    times["plan"] = time.perf_counter() - start
    images = x[:1].numpy()
    np.testing.assert_array_equal(engine(images), program.reference(images))
    start = time.perf_counter()
    engine(images)
    times["run"] = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n{name}: {size:,} bytes;", ", ".join(f"{what} {1000 * s:,.1f} ms" for what, s in times.items()))
    assert loaded == program
    assert size <= 1.02 * bit_budget(program)
    assert name != "resnet18" or size <= 3.3e6


OWN = """
from torch import nn
from bitbranch import models

@models.register
def perceptron(*, hidden=8, num_classes=10, in_channels=1, image_size=28):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, hidden), nn.ReLU(),
                         nn.Linear(hidden, num_classes))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a network of one's own, which the other tests do not see."""
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_networks_of_ones_own(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.register_file(own)
    models.register_file(own)  # is not run again
    assert models.build("perceptron", {"hidden": 5}).get_parameter("3.weight").shape == (10, 5)
    recipe = Recipe("perceptron", {}, (1, 28, 28), "lsq:w2-a2")
    network = recipe.build()
    bb.calibrate(network, [torch.rand(4, 1, 28, 28)])
    checkpoint.save(own.parent / "net.pt", recipe, network)
    del models.MODELS["perceptron"]
    arguments = ["compile", str(own.parent / "net.pt"), "--out", str(own.parent / "net.bb")]
    assert main(arguments) == 2
    assert "model 'perceptron': expected one of" in capsys.readouterr().err
    again = own.parent / "again.py"
    again.write_text(OWN)
    assert main(["--models", str(again), *arguments]) == 0


def test_files_without_networks_are_refused(own: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.py: no Python file"):
        models.register_file(own.parent / "nowhere.py")
    own.write_text("import nothing_of_this_name")
    with pytest.raises(InputError, match=r"own\.py: ModuleNotFoundError: No module named 'nothing_of_this_name'"):
        models.register_file(own)
    own.write_text(OWN.replace("perceptron", "resnet18"))
    with pytest.raises(InputError, match="model 'resnet18': there is one of this name"):
        models.register_file(own)


def test_functions_without_a_file_are_registered() -> None:
    names: dict[str, object] = {"register": models.register}
    text = "@register\ndef typed_in() -> None: ...\n"
    try:
        exec(text, names)
        assert models.register(models.MODELS["typed_in"]) is names["typed_in"]
        with pytest.raises(InputError, match="there is one of this name"):
            exec(text, names)
    finally:
        del models.MODELS["typed_in"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", ["a"]),
        ("info", 5),
        ("mean", ["a"]),
        ("input_shape", ["a", "b", "c"]),
        ("input_shape", [3, 32]),
        ("arguments", [1]),
    ],
)
def test_checkpoints_of_wrong_types_are_named(field: str, value: object, tmp_path: Path) -> None:
    recipe = Recipe("vgg_small", {"width": 0.1}, (3, 32, 32))
    checkpoint.save(tmp_path / "net.pt", recipe, recipe.build())
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    content["recipe"][field] = value
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"net\.pt: ") as caught:
        checkpoint.load(tmp_path / "net.pt")
    assert "\n" not in str(caught.value)
