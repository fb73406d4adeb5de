"""Local branches: the Haar transform, the frequency-enhanced convolution, stochastic depth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaadv2.model.config import Frequency
from mambaadv2.model.local import (
    FREQUENCY_SCALE,
    DropPath,
    FrequencyConv,
    LocalBranch,
    haar_transform,
    inverse_haar_transform,
)

FREQUENCIES: tuple[Frequency, ...] = ("wavelet", "fft", "none")
SIZES = [(8, 8), (2, 2), (1, 1), (1, 6), (5, 8), (8, 5), (7, 3)]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def randomised(conv: FrequencyConv) -> FrequencyConv:
    """Give every parameter a value that is not its start value."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return conv


def test_haar_is_its_four_taps() -> None:
    x = random(2, 3, 6, 10)
    taps = 0.5 * torch.tensor(
        [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
    )  # LL, LH (left minus right), HL (top minus bottom), HH
    bands = [F.conv2d(x.reshape(6, 1, 6, 10), tap[None, None], stride=2) for tap in taps]
    expected = torch.cat([band.view(2, 3, 3, 5) for band in bands], dim=1)
    torch.testing.assert_close(haar_transform(x), expected)


def test_haar_is_orthonormal() -> None:
    units = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
    matrix = haar_transform(units).flatten(1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize("size", SIZES)
def test_haar_is_invertible_for_any_size(size: tuple[int, int]) -> None:
    x = random(2, 3, *size, dtype=torch.float64)
    bands = haar_transform(x)
    assert bands.shape == (2, 12, (size[0] + 1) // 2, (size[1] + 1) // 2)
    torch.testing.assert_close(inverse_haar_transform(bands, *size), x)


def test_a_constant_map_has_only_the_lowest_band() -> None:
    bands = haar_transform(torch.full((1, 2, 5, 4), 3.0))
    torch.testing.assert_close(bands[:, :2], torch.full((1, 2, 3, 2), 6.0))
    assert not bands[:, 2:].any()


@pytest.mark.parametrize("frequency", ["wavelet", "fft"])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_scale_zero_is_the_plain_convolution(frequency: Frequency, kernel: int) -> None:
    conv = randomised(FrequencyConv(6, kernel, frequency))
    plain = FrequencyConv(6, kernel, "none")
    plain.conv.load_state_dict(conv.conv.state_dict())
    x = random(2, 6, 9, 12)
    assert not torch.equal(conv(x), plain(x))
    with torch.no_grad():
        conv.scale.zero_()
    assert torch.equal(conv(x), plain(x))


def test_the_plain_convolution_is_depth_wise() -> None:
    conv = FrequencyConv(4, 5, "none")
    x = random(1, 4, 8, 8)
    expected = F.conv2d(x, conv.conv.weight, padding=2, groups=4)
    assert torch.equal(conv(x), expected)


def test_the_scale_weighs_the_second_path() -> None:
    conv = FrequencyConv(4, 3, "wavelet")
    torch.testing.assert_close(conv.scale, torch.full((16,), FREQUENCY_SCALE))
    x = random(1, 4, 8, 8)
    once = conv(x) - conv.conv(x)
    with torch.no_grad():
        conv.scale.mul_(2)
    torch.testing.assert_close(conv(x) - conv.conv(x), 2 * once)


def test_a_wavelet_path_that_keeps_its_bands_adds_the_map() -> None:
    conv = FrequencyConv(4, 3, "wavelet")
    x = random(1, 4, 7, 6)
    with torch.no_grad():
        conv.band_conv.weight.zero_()
        conv.band_conv.weight[:, :, 1, 1] = 1.0
        conv.scale.fill_(1.0)
    torch.testing.assert_close(conv(x), conv.conv(x) + x)


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_the_fourier_path_starts_as_the_map(size: tuple[int, int]) -> None:
    conv = FrequencyConv(4, 3, "fft")
    x = random(2, 4, *size)
    torch.testing.assert_close(conv(x), conv.conv(x) + FREQUENCY_SCALE * x)


def test_the_fourier_path_is_a_filter() -> None:
    """A real gain of 2 doubles the map; the filter commutes with turning the map around."""
    conv = FrequencyConv(4, 3, "fft")
    x = random(2, 4, 8, 6)
    with torch.no_grad():
        conv.gain[0].fill_(1.0)
    torch.testing.assert_close(conv(x) - conv.conv(x), 2 * FREQUENCY_SCALE * x)
    conv = randomised(conv)
    shifted = x.roll((2, 1), dims=(2, 3))
    second = (conv(x) - conv.conv(x)).roll((2, 1), dims=(2, 3))
    torch.testing.assert_close(conv(shifted) - conv.conv(shifted), second)


@pytest.mark.parametrize("frequency", FREQUENCIES)
@pytest.mark.parametrize("size", SIZES)
def test_a_branch_keeps_the_shape(frequency: Frequency, size: tuple[int, int]) -> None:
    y = LocalBranch(6, 5, frequency)(random(2, 6, *size))
    assert y.shape == (2, 6, *size)
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_a_branch_has_no_biases_because_they_would_do_nothing(frequency: Frequency) -> None:
    branch = LocalBranch(4, 3, frequency)
    names = dict(branch.named_parameters())
    assert not [name for name in names if name.endswith("bias")]
    x = random(2, 4, 6, 6)
    expected = branch(x)
    for conv in (branch.first, branch.spatial.conv, branch.last):
        bias = random(4, 1, 1)
        conv.register_forward_hook(lambda _module, _inputs, y, bias=bias: y + bias)
    torch.testing.assert_close(branch(x), expected, rtol=1e-3, atol=1e-4)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    y = drop(torch.ones(20_000, 3, 2))
    kept = y[:, 0, 0]
    assert torch.equal(y, kept.view(-1, 1, 1).expand_as(y))
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.75]))
    # Five standard deviations of a mean over 20 000 samples.
    assert abs(float(kept.eq(0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    assert abs(float(kept.mean()) - 1) < 5 * (0.25 / 0.75 / 20_000) ** 0.5


def test_drop_path_does_nothing_in_evaluation_or_at_rate_zero() -> None:
    x = random(8, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x
