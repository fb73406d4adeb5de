"""The neck: shapes, size, and the half pyramid written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaadv2.model.neck import Bottleneck, ConvNorm, Neck


def features(channels: tuple[int, ...], height: int, width: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(2, c, height >> i, width >> i, generator=generator)
        for i, c in enumerate(channels)
    )


@pytest.mark.parametrize(
    "channels, size",
    [((8, 12, 16), (16, 16)), ((8, 12, 16), (8, 40)), ((12, 16), (8, 8)), ((12, 16), (4, 12))],
)
def test_all_scales_become_one_map(channels: tuple[int, ...], size: tuple[int, int]) -> None:
    deepest = [side >> (len(channels) - 1) for side in size]
    y = Neck(channels, 32)(features(channels, *size))
    assert y.shape == (2, 32, deepest[0] // 2, deepest[1] // 2)


def test_r34_has_the_ancestors_size() -> None:
    assert sum(p.numel() for p in Neck((64, 128, 256), 512).parameters()) == 1_457_664


def test_the_pyramid_is_what_its_docstring_says() -> None:
    neck = Neck((8, 12, 16), 32).eval()
    first, second, third = features((8, 12, 16), 16, 16)
    x = F.relu(neck.downs[0](first)) + F.relu(neck.laterals[0](second))
    x = F.relu(neck.downs[1](x)) + F.relu(neck.laterals[1](third))
    x = F.relu(neck.merge(x))
    torch.testing.assert_close(neck((first, second, third)), neck.stage(x))


def test_every_scale_matters() -> None:
    neck = Neck((8, 12, 16), 32).eval()
    maps = features((8, 12, 16), 16, 16)
    y = neck(maps)
    for i in range(3):
        changed = tuple(m + 1.0 if i == j else m for j, m in enumerate(maps))
        assert not torch.allclose(neck(changed), y, atol=1e-4)


def test_a_wrong_number_of_scales_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        Neck((8, 12, 16), 32)(features((8, 12), 16, 16))


def test_a_bottleneck_has_a_shortcut_of_its_own_only_where_shapes_change() -> None:
    assert isinstance(Bottleneck(16, 32, 2).shortcut, ConvNorm)
    assert isinstance(Bottleneck(16, 32, 1).shortcut, ConvNorm)
    same = Bottleneck(32, 32, 1)
    assert same.shortcut is None
    with torch.no_grad():
        for norm in same.restore.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.weight.zero_()
    x = torch.rand(2, 32, 4, 4)
    assert torch.equal(same(x), x)  # non-negative, so the last ReLU keeps it
