"""Step 2 on a float network, without training or interrupted."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from strokes import Block, accuracy, batches, inner_layers, plain_net, residual_net, small_net, stroke_images
from torch import nn

from bitbranch import coverage, quantize
from bitbranch.compiler import compile
from bitbranch.compiler.verify import verify
from bitbranch.errors import InputError
from bitbranch.layers import QuantizedLayer
from bitbranch.quantizers.registry import parse_scheme, tsq
from bitbranch.training.loop import fit
from bitbranch.twostep import Recipe, convert, learn_transforms, reestimate_batchnorm
from bitbranch.twostep.codes import has_low_bit_weight
from bitbranch.twostep.convert import float_twin
from bitbranch.twostep.layer import holds_any_weights, loosen, write_weight

torch.set_num_threads(1)  # small problems; the machine may be shared
pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture(scope="module", params=[small_net, residual_net], ids=["chain", "residual"])
def float_net(request):
    torch.manual_seed(0)
    net, loader = request.param(), batches(*stroke_images(1200, 0))
    fit(net, loader, epochs=4, lr=5e-3, seed=0, progress=None)
    return net, loader, stroke_images(600, 1)


@pytest.mark.parametrize(("scheme", "per_channel"), [("tsq:wt-a2", False), ("tsq:w1-a2", True), ("tsq:w3-a3", False)])
def test_a_float_network_is_converted_without_training(float_net, scheme, per_channel):
    net, loader, test = float_net
    before, reports = {k: v.clone() for k, v in net.state_dict().items()}, []
    recipe = Recipe(samples=3000)
    q = convert(
        net, loader[:10], scheme, per_channel=per_channel, recipe=recipe, progress=None, on_layer=reports.append
    )
    start = convert(net, loader[:10], scheme, recipe=Recipe(method="start", reestimate=False), progress=None)
    found = {"float": accuracy(net, test), "start": accuracy(start, test), "solved": accuracy(q, test)}
    print(found, *reports, sep="\n")
    assert found["solved"] > max(0.65, found["start"] - 0.03)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert verify(q, compile(q, test[0][:2]), [test[0][:50]]).mismatches == 0
    if isinstance(net[4], Block):
        assert [("an addition reads it" in r.target) for r in reports] == [*[False, True] * 2, False]


@pytest.mark.parametrize(
    "scheme",
    [
        *(f"tsq:w{b}-a2" for b in ("1", "t", "2", "3", "4", "7")),
        *("tsq(learned=true):wt-a2", "lsq(per_channel=true):w4-a4", "twn:wt-a2", "w4a4", "mbn:w2-a2", "mbn:w4-a4"),
    ],
)
def test_layers_hold_whatever_is_solved(scheme: str) -> None:
    """Any integers and scales, also where a channel's largest is not the largest there is; saved and loaded, too."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    q = quantize(network, scheme)
    assert holds_any_weights(q[2])
    kind = q[2].weight_quantizer.code_type
    step = kind.step
    for top in range(kind.hi, 0, -step):
        levels = torch.arange(-top, top + 1, step, dtype=torch.float64)
        values = levels[torch.randint(len(levels), q[2].weight.shape)]
        values[:, 0, 0, 0] = top  # no channel is empty
        scale = torch.rand(5, dtype=torch.float64) + 0.1
        with torch.no_grad():
            kept = write_weight(q[2], values, scale)
        torch.testing.assert_close(kept, scale, rtol=1e-6, atol=0)
        again = quantize(network, scheme)
        again.load_state_dict(q.state_dict())
        read, scales, _ = again[2].integer_weight()
        assert torch.equal(read.double(), values) and torch.equal(scales.double(), kept)

        tight = q[2].weight.detach().clone()
        real = tight + 0.3 * tight.abs().max() * torch.randn_like(tight)
        loose = loosen(q[2], 7 * real)  # whatever its scale
        read, scales, _ = q[2].integer_weight()
        assert torch.equal(read.double(), values) and torch.equal(scales.double(), loose)
        torch.testing.assert_close(loose, scale, rtol=1e-4, atol=0)
        before, after = ((w - real).flatten(1).norm(dim=1) for w in (tight, q[2].weight.detach()))
        assert (after <= before).float().mean() > 0.5 and after.sum() < before.sum()
    old = {name: value for name, value in quantize(network, scheme).state_dict().items() if "held" not in name}
    quantize(network, scheme).load_state_dict(old)


@pytest.mark.parametrize("scheme", ["dorefa:w2-a2", "mbn(fixed_range=true):w2-a2", "lsq:w4-a4"])
def test_quantizers_that_cannot_hold_what_is_solved_are_refused_at_once(float_net, scheme: str) -> None:
    net, loader, _ = float_net
    said = "cannot hold what step 2 finds; take tsq's weights"
    with pytest.raises(InputError, match=said):
        convert(net, loader, scheme, progress=lambda line: pytest.fail(f"began: {line}"))
    q = quantize(net, "tsq:wt-a2")
    for other, layer in zip(quantize(net, scheme).modules(), q.modules(), strict=True):
        if isinstance(layer, QuantizedLayer) and has_low_bit_weight(layer):
            layer.weight_quantizer = other.weight_quantizer
    with pytest.raises(InputError, match=said):
        learn_transforms(q, copy.deepcopy(q), loader, progress=lambda line: pytest.fail(f"began: {line}"))


@pytest.mark.parametrize("scheme", ["mbn:w4-a4", "mbn:w1-a1"])
def test_another_function_is_not_what_layers_are_fitted_to(float_net, scheme: str) -> None:
    """Codes that read signs put Hardtanh where ReLU was; a network that has learned with it is converted."""
    net, loader, _ = float_net
    with pytest.raises(InputError, match=r"step 2: .* becomes a Hardtanh: another function"):
        convert(net, loader, scheme, progress=lambda line: pytest.fail(f"began: {line}"))
    if scheme == "mbn:w4-a4":  # of one bit the codes cannot tell 0 from -1
        student = convert(float_twin(quantize(net, scheme)), loader, scheme, progress=None)
        assert any(layer.scheme == scheme for layer in coverage(student))


HELD = [("tsq:w1-a4", True), ("bwn:w1-a4", True), ("binaryconnect:w1-a4", False)]


@pytest.mark.parametrize(("scheme", "held"), HELD)
def test_solved_scales_need_a_place(scheme: str, held: bool) -> None:
    loader, said = batches(*stroke_images(40, 0)), "layer 2: .*Weight has no scale for what step 2 finds"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with nullcontext() if held else pytest.raises(InputError, match=said):
            convert(plain_net(), loader, scheme, progress=None)


def test_codes_for_normalised_inputs_are_warned_about() -> None:
    net = plain_net()
    for scheme in ("tsq:wt-a2", "hwgq:w1-a2", parse_scheme("tsq:wt-a2", tsq(lloyd=True))):
        with pytest.warns(UserWarning, match="quantize: 2: the codes are for inputs that a BatchNorm has normalised"):
            quantize(net, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(net, "lsq:w2-a2")
        quantize(small_net(), "tsq:wt-a2")
        convert(net, batches(*stroke_images(40, 0)), "tsq:wt-a2", progress=None)  # finds its own steps


@pytest.mark.parametrize("native", [True, False])
def test_an_interrupted_run_goes_on_with_the_same_result(float_net, tmp_path, monkeypatch, native):
    net, loader, _ = float_net
    if not native:
        monkeypatch.setattr("bitbranch.twostep.descent._core", lambda: None)
    recipe = Recipe(samples=400)

    class Killed(BaseException):
        pass

    def kill(report):
        raise Killed

    def run(state, **options):
        return convert(net, loader[:4], recipe=recipe, state=state, progress=None, **options).state_dict()

    whole = run(None)
    for _ in range(2):  # the second time the first layer is there already
        with pytest.raises(Killed):
            run(tmp_path / "state", on_layer=kill)
    lines: list[str] = []
    resumed = convert(net, loader[:4], recipe=recipe, state=tmp_path / "state", progress=lines.append).state_dict()
    assert "(kept)" in lines[0] and "(kept)" not in lines[1]
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())
    with pytest.raises(InputError, match="holds a run with other images"):
        convert(net, loader[1:5], recipe=recipe, state=tmp_path / "state", progress=None)
    (tmp_path / "state" / "run.txt").rename(tmp_path / "run.txt")
    with pytest.raises(InputError, match=r"holds 001\.pt of no known run"):
        run(tmp_path / "state")
    (tmp_path / "run.txt").rename(tmp_path / "state" / "run.txt")
    (tmp_path / "state" / "001.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"001\.pt: damaged"):
        run(tmp_path / "state")


def test_a_network_depends_neither_on_threads_nor_on_the_core(float_net, threads, monkeypatch):
    net, loader, _ = float_net
    found = []
    for count, native in ((1, True), (2, True), (2, False)):
        threads(count)
        if not native:
            monkeypatch.setattr("bitbranch.twostep.descent._core", lambda: None)
        found.append(convert(net, loader[:4], recipe=Recipe(samples=400), progress=None).state_dict())
    for other in found[1:]:
        assert all(torch.equal(v, other[k]) for k, v in found[0].items())


def test_steps_from_data_are_in_the_state(float_net, tmp_path):
    net, loader, _ = float_net
    q = convert(net, loader[:2], recipe=Recipe(method="start"), progress=None)
    again = quantize(net, "tsq:wt-a2")
    again.load_state_dict(q.state_dict())
    steps = [layer.input_quantizer.step for layer in inner_layers(q)]
    assert steps == [layer.input_quantizer.step for layer in inner_layers(again)]
    again.load_state_dict({k: v for k, v in q.state_dict().items() if not k.endswith("grid")})  # an older checkpoint


def test_layers_that_share_their_weights_are_refused() -> None:
    """Solving one would change the other behind its back."""
    one, two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    two.weight = one.weight
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), one, nn.ReLU(), two, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    net(stroke_images(2, 0)[0])
    with pytest.raises(InputError, match=r"layers \S+ and \S+: step 2 cannot solve layers that share their weights"):
        convert(net, batches(*stroke_images(64, 0)), "tsq:wt-a2", progress=None)


def test_images_without_labels_calibrate_as_well(float_net):
    net, loader, _ = float_net
    q, same = (
        convert(net, given, recipe=Recipe(samples=500), progress=None)
        for given in (loader[:2], [images for images, _ in loader[:2]])
    )
    assert all(torch.equal(a, b) for a, b in zip(q.state_dict().values(), same.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(4, 1, 12, 12), "takes batches: give it a list"),
        ((torch.zeros(4, 1, 12, 12) for _ in range(2)), "need a length, which generator has not"),
        ([], "no batches to calibrate with"),
        ((torch.rand(2, 1, 12, 12), torch.zeros(2)), r"batch 1 has the shape \[2\]; images are"),
        ([torch.full((2, 1, 12, 12), float("nan"))], "hold NaN or infinity"),
    ],
)
def test_what_is_no_batches_of_images_is_named(given, message: str) -> None:
    net = small_net().eval()
    for use in (lambda: convert(net, given, progress=None), lambda: reestimate_batchnorm(net, given)):
        with pytest.raises(InputError, match=message):
            use()
