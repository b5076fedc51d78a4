"""Networks as people write them: modes, buffers, keywords, pools and enlargements in other words; and fine sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from random_networks import quantized
from torch import Tensor, nn
from torch.nn import functional as F

from bitbranch import CompileError, InputError, decompose
from bitbranch.compiler import compile
from bitbranch.compiler.verify import Verification, verify
from bitbranch.runtime import program as p
from bitbranch.runtime import reference


def images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


class Between(nn.Module):
    """A convolution, a ReLU, what is tested, and a last layer."""

    def __init__(self, between: Callable[..., Tensor], last: nn.Module, channels: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.last = nn.Conv2d(3, channels, 3, padding=1), between, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(F.relu(self.first(x))))  # type: ignore[no-any-return]


def checked(network: nn.Module, x: Tensor, scheme: str = "lsq:w4-a4") -> tuple[p.Program, Verification]:
    q = quantized(network, scheme, x)
    program = compile(q, x)
    return program, verify(q, program, [x])


def exact(network: nn.Module, x: Tensor, scheme: str = "lsq:w4-a4") -> p.Program:
    program, result = checked(network, x, scheme)
    assert result.mismatches == 0, str(result)
    assert result.output_error_exact < 1e-5
    return program


# ---- modes and buffers


def under_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cuda", enabled=False):
        return F.relu(x) + 1.0


def under_several(x: Tensor) -> Tensor:
    with torch.autocast("cuda", enabled=False):
        y = F.relu_(x)
        with torch.enable_grad():
            z = y * 2.0
            with torch.autocast("cpu", enabled=False), torch.no_grad():
                return z + y


@pytest.mark.parametrize(
    "between", [under_autocast, torch.enable_grad()(F.relu), torch.no_grad()(F.relu), under_several]
)
def test_modes_of_autocast_and_gradients_are_nothing(between: Callable[[Tensor], Tensor]) -> None:
    exact(Between(between, nn.Conv2d(6, 4, 1)), images(3, 3, 8, 8))


def test_layers_under_a_mode_are_the_same_layers() -> None:
    class Whole(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second, third = self
            with torch.autocast("cuda", enabled=False):
                low = F.relu(first(x))
                both = second(low), F.relu(second(low))
            return both[0], third(both[1])

    network = Whole(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1))
    program = exact(network, images(3, 3, 8, 8))
    assert program.output_names == ("output0", "output1")


def test_bfloat16_in_the_network_is_refused() -> None:
    @torch.autocast("cpu", torch.bfloat16)
    def low(x: Tensor) -> Tensor:
        return F.relu(x)

    x = images(3, 3, 8, 8)
    with pytest.raises(CompileError, match=r"computes under torch\.autocast; leave it away"):
        compile(quantized(Between(low, nn.Conv2d(6, 4, 1)), "lsq:w4-a4", x), x)


@pytest.mark.parametrize("what", ["counts", "keeps"])
def test_buffers_that_evaluation_writes_are_no_outputs(what: str) -> None:
    class Writes(Between):
        def forward(self, x: Tensor) -> Tensor:
            if what == "counts":
                self.calls += 1
                return super().forward(x)
            low = F.relu(self.first(x))
            self.calls.copy_(low.mean())
            return self.last(low)  # type: ignore[no-any-return]

    network = Writes(F.relu, nn.Conv2d(6, 4, 1))
    network.register_buffer("calls", torch.zeros(()))
    exact(network, images(3, 3, 8, 8))


# ---- layers that are called in other ways


@pytest.mark.parametrize("which", [(0,), (1,), (0, 2), (1, 2)])
def test_calls_that_no_output_depends_on_are_left_out(which: tuple[int, ...]) -> None:
    """The program has fewer calls of the head than the network, which verify finds among those of the network."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.down = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.head = nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            levels = [F.relu(self.first(x))]
            for stride in (1, 2):
                levels.append(F.max_pool2d(F.relu(self.down(levels[-1])), stride))
            heads = [self.head(level) for level in levels]
            return [heads[i] for i in which]

    exact(Pyramid(), images(3, 3, 8, 8))


def test_layers_take_their_input_by_name() -> None:
    class Named(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(input=F.relu(self.first(input=x)))  # type: ignore[no-any-return]

    x = images(3, 3, 8, 8)
    exact(Named(F.relu, nn.Conv2d(6, 4, 1)), x)
    q = quantized(Named(F.relu, nn.Conv2d(6, 4, 1)), "mbn:w2-a2", x)
    assert torch.equal(decompose(q)(x), q(x))


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (7, 7), (3, 4, 8, 7)])
def test_transposed_convolutions_reach_a_size(size: tuple[int, ...]) -> None:
    class Reaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.down, self.last = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(4, 2, 1)
            self.up = nn.ConvTranspose2d(6, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            small = F.relu(self.down(x))
            wanted = [len(x), *size[1:]] if len(size) == 4 else size
            return self.last(F.relu(self.up(small, output_size=wanted))), self.last(F.relu(self.up(small)))

    x = images(3, 3, 8, 8)
    network = Reaching()
    q = quantized(network, "lsq:w4-a4", x)
    assert q.up.output_padding == (0, 0)
    assert [tuple(y.shape[2:]) for y in q(x)] == [size[-2:], (7, 7)]
    assert exact(network, x).output_shapes == ((2, *size[-2:]), (2, 7, 7))
    assert all(torch.equal(a, b) for a, b in zip(decompose(q)(x), q(x), strict=True))


# ---- pools and enlargements


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean(3).mean(2),
        lambda x: x.mean(2).mean(2),
        lambda x: x.view(len(x), 6, -1).mean(2),
        lambda x: F.relu(x.flatten(2) * 2.0 - 0.5).mean(-1),
        lambda x: x.sum((2, 3)) / 40,
        lambda x: x.max(3)[0].max(2)[0],
        lambda x: x.max(2)[0].amax(-1),
        lambda x: x.flatten(2).amax(2),
        lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1).flatten(1),
        lambda x: F.adaptive_max_pool2d(x, 1).squeeze(3).squeeze(2),
    ],
)
def test_global_pools_in_all_words(pool: Callable[[Tensor], Tensor]) -> None:
    x = images(3, 3, 5, 8)
    network = Between(pool, nn.Linear(6, 4))
    program, result = checked(network, x)
    assert result.codes_differing == 0 and result.output_error_exact < 1e-5
    assert program.output_shape == (4,)


@pytest.mark.parametrize("last", [lambda x: x.flatten(2), lambda x: x.mean(3)])
def test_a_map_is_returned_as_it_is(last: Callable[[Tensor], Tensor]) -> None:
    class Returned(Between):
        def forward(self, x: Tensor) -> Tensor:
            return last(super().forward(x))

    x = images(3, 3, 5, 8)
    with pytest.raises(CompileError, match="output has a map's height and width in one axis; return the map"):
        compile(quantized(Returned(F.relu, nn.Conv2d(6, 4, 1)), "lsq:w4-a4", x), x)


@pytest.mark.parametrize(
    "window",
    [
        lambda x: F.max_pool1d(x.flatten(2), 3, 1, 1).mean(2),
        lambda x: F.avg_pool1d(x.mean(3), 5).flatten(1),
        lambda x: F.adaptive_avg_pool1d(x.flatten(2), 4).mean(2),
    ],
)
def test_windows_along_two_axes_in_one_are_refused(window: Callable[[Tensor], Tensor]) -> None:
    x = images(3, 3, 5, 8)
    with pytest.raises(CompileError, match="takes windows along an axis that is"):
        compile(quantized(Between(window, nn.Linear(6, 4)), "lsq:w4-a4", x), x)


def test_sequences_of_pixels_are_convolved_one_by_one() -> None:
    x = images(3, 3, 5, 8)
    one = nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 5, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())
    exact(Between(one, nn.Linear(5, 4)), x)
    several = nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 5, 3), nn.ReLU())
    with pytest.raises(CompileError, match=r"'between\.1': takes windows along an axis"):
        compile(quantized(Between(several, nn.Conv1d(5, 4, 1)), "lsq:w4-a4", x), x)


@pytest.mark.parametrize("scheme", ["lsq:w2-a2", "lsq:w8-a8"])
@pytest.mark.parametrize("size", [256, 300])
def test_averages_over_large_maps(size: int, scheme: str) -> None:
    x = images(1, 3, size, size)
    network = Between(lambda x: F.adaptive_avg_pool2d(x.clamp(max=6.0), 1).flatten(1), nn.Linear(2, 3), channels=2)
    _, result = checked(network, x, scheme)
    assert result.output_error_exact < 1e-4


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(64, 64), (67, 90)])
def test_one_pixel_fills_a_map(size: tuple[int, int], mode: str) -> None:
    """The pooling branch of atrous pyramids."""

    for corners in (None,) if mode == "nearest" else (False, True):
        enlarge = nn.Upsample(size, mode=mode, align_corners=corners)
        pooled = nn.Sequential(nn.AdaptiveMaxPool2d(1), enlarge)
        program = exact(Between(pooled, nn.Conv2d(6, 2, 1)), images(2, 3, 6, 6))
        assert program.output_shape == (2, *size)


def test_a_size_that_a_map_has_anyway_is_nothing() -> None:
    def resized(x: Tensor) -> Tensor:
        return F.interpolate(x, size=(6, 7), mode="bilinear", align_corners=True)

    program = exact(Between(resized, nn.Conv2d(6, 2, 1)), images(2, 3, 6, 7))
    assert not any(isinstance(op, p.Upsample) for op in program.operations)


def test_instance_norm_with_running_statistics_is_a_batch_norm() -> None:
    norm = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    exact(Between(norm, nn.Sequential(nn.ReLU(), nn.Conv2d(6, 2, 1))), images(2, 3, 6, 7))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda x: x[:, :, 1:-1, 1:-1], "takes a part of the image"),
        (lambda x: x[:, :, :, 0], "takes a part of the image"),
        (lambda x: x[:, :3], "takes a part of the channels"),
        (lambda x: torch.maximum(x, x * 2.0), "no integer form"),
        (lambda x: F.conv2d(x, torch.ones(6, 6, 1, 1)), "a function such as F.conv2d"),
    ],
)
def test_what_is_refused_has_the_true_reason(part: Callable[[Tensor], Tensor], said: str) -> None:
    x = images(2, 3, 6, 6)
    network = Between(part, nn.Flatten())
    with pytest.raises(CompileError, match=said):
        compile(quantized(network, "lsq:w4-a4", x), x)


# ---- sums


class Sums(nn.Module):
    """A sum, or a ReLU, that is enlarged into another sum, which a layer of many levels reads."""

    def __init__(self, *, summed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.summed, self.first = summed, nn.Conv2d(3, 64, 3, padding=1)
        self.lateral, self.last = nn.Conv2d(64, 64, 3, 1, 1), nn.Conv2d(64, 5, 1)
        self.top, self.other = (nn.Conv2d(64, 64, 3, 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        top = self.top(x) + self.other(x) if self.summed else F.relu(self.top(x))
        top = F.interpolate(top, scale_factor=2, mode="bilinear")
        return self.last(self.lateral(x) + top)  # type: ignore[no-any-return]


@pytest.mark.parametrize("summed", [False, True])
def test_sums_that_feed_other_sums_are_fine_enough(summed: bool) -> None:
    _, result = checked(Sums(summed=summed), images(4, 3, 16, 16), "lsq:w8-a8")
    read = result.layers[-1].codes
    assert read.compared == 65536 and read.differing <= 65536 / 1000


def test_a_sum_that_is_an_output_is_fine() -> None:
    class Heads(Sums):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            return self.lateral(x) + self.lateral(-x)  # type: ignore[no-any-return]

    x = images(4, 3, 16, 16)
    q = quantized(Heads(summed=True), "lsq:w8-a8", x)
    result = verify(q, compile(q, x), [x])
    assert result.output_error_exact < 1e-4 * float(q(x).detach().std())


# ---- examples


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ([images(1, 3, 6, 6)], "must be a tensor or an array, or a tuple of them .* got a list"),
        ({"x": images(1, 3, 6, 6)}, "got a dict"),
        (np.zeros((1, 3, 6, 6), np.uint8), "must be reals, as the network takes them, got torch.uint8"),
        (images(6), r"got shape \[6\]"),
        (images(0, 3, 6, 6), r"got shape \[0, 3, 6, 6\]"),
    ],
)
def test_wrong_examples(example: object, said: str) -> None:
    q = quantized(Between(F.relu, nn.Conv2d(6, 4, 1)), "lsq:w4-a4", images(2, 3, 6, 6))
    with pytest.raises(InputError, match=said):
        compile(q, example)  # type: ignore[arg-type]


def test_examples_may_be_double() -> None:
    x = images(2, 3, 6, 6)
    q = quantized(Between(F.relu, nn.Conv2d(6, 4, 1)), "lsq:w4-a4", x)
    of_double = compile(q, x.double().numpy())
    assert np.array_equal(reference.run(of_double, x.numpy()), reference.run(compile(q, x), x.numpy()))
    with pytest.raises(CompileError, match=r"cannot capture the network for \[N, 2, 6, 6\]: .*channels"):
        compile(q, x[:, :2])


@pytest.mark.parametrize("factor", [1e6, 1e-3])
def test_parameters_that_are_huge_beside_a_clip_are_refused(factor: float) -> None:
    """A slope, or an intercept."""

    def scaled(x: Tensor) -> Tensor:
        return F.avg_pool2d((x * factor + (1e12 if factor < 1 else 0.0)).clamp(-1e-3, 1e-3), 2)

    x = images(2, 3, 6, 6)
    with pytest.raises(CompileError, match=r"'clamp.*': (fixed-point ratio|an intercept of) .* does not fit"):
        compile(quantized(Between(scaled, nn.Conv2d(6, 4, 1)), "lsq:w4-a4", x), x)
