"""From residuals to maps: cosine, whitening and its moments, class finding, smoothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mambaadv2.model.scoring import (
    RIDGE,
    SHRINK_IMAGES,
    ResidualMoments,
    Scorer,
    class_descriptor,
    gaussian_smooth,
    whitening,
)

CHANNELS = (6, 10)
SIZE = (32, 48)


def random(*shape: int, seed: int = 8) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(batch: int = 2, seed: int = 1) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Features and reconstructions at two scales."""
    shapes = [(batch, c, SIZE[0] >> (2 + i), SIZE[1] >> (2 + i)) for i, c in enumerate(CHANNELS)]
    features = tuple(random(*shape, seed=seed + i) for i, shape in enumerate(shapes))
    rebuilt = tuple(f + 0.3 * random(*f.shape, seed=seed + 7) for f in features)
    return features, rebuilt


def scorer(kind: str, *, sigma: float = 0.0, classes: int = 1) -> Scorer:
    return Scorer(kind, CHANNELS, classes, sigma, SIZE)


def correlated(rows: int, channels: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian rows (rows, C) with their mean and covariance."""
    mixing = 0.4 * random(channels, channels, seed=seed) / channels**0.5 + torch.eye(channels)
    mean = random(channels, seed=seed + 1)
    return random(rows, channels, seed=seed + 2) @ mixing.T + mean, mean, mixing @ mixing.T


def as_map(rows: Tensor, height: int) -> Tensor:
    return rows.T.reshape(rows.shape[1], height, -1)


# Cosine


def test_the_cosine_map_is_one_minus_the_cosine_of_each_position() -> None:
    features, rebuilt = pair()
    total = torch.zeros(2, *SIZE)
    for f, r in zip(features, rebuilt, strict=True):
        level = torch.zeros(2, 1, *f.shape[-2:])
        for b, i, j in np.ndindex(2, *f.shape[-2:]):
            u, v = f[b, :, i, j], r[b, :, i, j]
            level[b, 0, i, j] = 1 - u @ v / (u.norm() * v.norm())
        total += F.interpolate(level, size=SIZE, mode="bilinear").squeeze(1)
    maps = scorer("cosine")(features, rebuilt, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(maps, total)


def test_a_perfect_reconstruction_scores_zero_and_its_negative_two_per_scale() -> None:
    features, _ = pair()
    classes = torch.zeros(2, dtype=torch.long)
    maps = scorer("cosine", sigma=2.0)
    torch.testing.assert_close(maps(features, features, classes), torch.zeros(2, *SIZE))
    opposite = tuple(-2 * f for f in features)
    torch.testing.assert_close(maps(features, opposite, classes), torch.full((2, *SIZE), 4.0))


def test_the_map_is_smoothed() -> None:
    features, rebuilt = pair()
    classes = torch.zeros(2, dtype=torch.long)
    sharp = scorer("cosine")(features, rebuilt, classes)
    smooth = scorer("cosine", sigma=1.5)(features, rebuilt, classes)
    torch.testing.assert_close(smooth, gaussian_smooth(sharp.unsqueeze(1), 1.5).squeeze(1))


# Moments and whitening


def test_moments_are_mean_and_covariance() -> None:
    rows, _, _ = correlated(60, 5, seed=1)
    moments = ResidualMoments.of(as_map(rows, 6))
    assert moments.count == 60
    torch.testing.assert_close(moments.mean, rows.double().mean(dim=0))
    torch.testing.assert_close(moments.covariance, torch.cov(rows.double().T, correction=0))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 4))
def test_moments_of_parts_add_up(heights: list[int], channels: int) -> None:
    maps = [random(channels, h, 3, seed=i) for i, h in enumerate(heights)]
    together = ResidualMoments.of(torch.cat(maps, dim=1))
    total = ResidualMoments.sum([ResidualMoments.of(m) for m in maps])
    assert total.count == together.count
    torch.testing.assert_close(total.mean, together.mean)
    torch.testing.assert_close(total.covariance, together.covariance, rtol=1e-7, atol=1e-12)


def test_leaving_one_out_is_having_only_the_others() -> None:
    maps = [random(4, 5, 5, seed=i) for i in range(5)]
    parts = [ResidualMoments.of(m) for m in maps]
    whole = ResidualMoments.sum(parts)
    for i, part in enumerate(parts):
        others = ResidualMoments.sum(parts[:i] + parts[i + 1 :])
        assert others.count == whole.count - part.count
        torch.testing.assert_close(others.total, whole.total - part.total)
        torch.testing.assert_close(others.products, whole.products - part.products)
        rest = ResidualMoments.of(torch.cat([m for j, m in enumerate(maps) if j != i], dim=1))
        torch.testing.assert_close(others.covariance, rest.covariance)


@pytest.mark.parametrize("images", [1, 4, 30])
def test_whitening_inverts_the_shrunk_covariance(images: int) -> None:
    parts = [ResidualMoments.of(as_map(correlated(80, 5, seed=3)[0], 8)) for _ in range(images)]
    pooled = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    mean, w = whitening(ResidualMoments.sum(parts), len(parts), pooled)
    own = ResidualMoments.sum(parts)
    share = SHRINK_IMAGES / (SHRINK_IMAGES + images)
    expected = (1 - share) * own.covariance + share * pooled
    expected += RIDGE * expected.diagonal().mean() * torch.eye(5)
    torch.testing.assert_close(mean, own.mean.float())
    assert w.dtype == torch.float32
    w = w.double()
    torch.testing.assert_close(w.T @ w, expected.inverse(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        w @ expected @ w.T, torch.eye(5, dtype=torch.float64), rtol=1e-4, atol=1e-5
    )


def test_whitening_survives_residuals_without_variance() -> None:
    parts = [ResidualMoments.of(torch.full((3, 4, 4), 2.0))]
    mean, w = whitening(
        ResidualMoments.sum(parts), len(parts), torch.zeros(3, 3, dtype=torch.float64)
    )
    torch.testing.assert_close(mean, torch.full((3,), 2.0))
    assert bool(w.isfinite().all())


def fitted(classes: int) -> tuple[Scorer, list[list[Tensor]]]:
    """Whitened scorer fitted on 40 Gaussian residuals per class, and 16 others [class][scale]."""
    model = scorer("whitened", classes=classes)
    heldout: list[list[Tensor]] = []
    for index in range(classes):
        maps = []
        for scale, c in enumerate(CHANNELS):
            height, width = SIZE[0] >> (2 + scale), SIZE[1] >> (2 + scale)
            size = height * width
            scaled = 10.0**index  # classes whose residuals differ in size must score alike
            rows = scaled * correlated(56 * size, c, seed=20 + 3 * index + scale)[0]
            images = [as_map(part, height) for part in rows.split(size)]
            parts = [ResidualMoments.of(image) for image in images[:40]]
            covariance = ResidualMoments.sum(parts).covariance
            model.fit_whitening(
                index, scale, *whitening(ResidualMoments.sum(parts), len(parts), covariance)
            )
            maps.append(torch.stack(images[40:]))
        heldout.append(maps)
    return model, heldout


def nothing_like(features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(f) for f in features)


def test_a_typical_normal_residual_is_about_one_in_every_class_and_scale() -> None:
    model, heldout = fitted(classes=2)
    for index, features in enumerate(heldout):
        classes = torch.full((16,), index)
        maps = model.scale_maps(tuple(features), nothing_like(features), classes)
        assert maps.shape == (16, 2, *SIZE)
        # The root of a mean of 6 or 10 squares of unit normals is 0.96 or 0.98 on average.
        assert maps.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.97, 0.97], abs=0.05)


def test_the_whitened_map_is_the_mahalanobis_distance() -> None:
    model, heldout = fitted(classes=2)
    features = tuple(maps[:1] for maps in heldout[1])
    rebuilt = tuple(random(*f.shape, seed=4) for f in features)
    maps = model.scale_maps(features, rebuilt, torch.tensor([1]))
    for scale, (f, r) in enumerate(zip(features, rebuilt, strict=True)):
        mean, w = model.get_buffer(f"mean_{scale}")[1], model.get_buffer(f"whiten_{scale}")[1]
        difference = (f - r)[0].flatten(1).T - mean
        squared = ((difference @ (w.T @ w)) * difference).sum(dim=1) / len(mean)
        level = squared.sqrt().view(1, 1, *f.shape[-2:])
        expected = F.interpolate(level, size=SIZE, mode="bilinear")[0, 0]
        torch.testing.assert_close(maps[0, scale], expected, rtol=1e-3, atol=1e-4)


def test_each_image_is_whitened_with_its_own_class() -> None:
    model, (first, second) = fitted(classes=2)
    features = tuple(torch.cat([a[:1], b[:1]]) for a, b in zip(first, second, strict=True))
    both = model(features, nothing_like(features), torch.tensor([0, 1]))
    for i in range(2):
        alone = tuple(f[i : i + 1] for f in features)
        expected = model(alone, nothing_like(alone), torch.tensor([i]))
        torch.testing.assert_close(both[i : i + 1], expected)
    swapped = model(features, nothing_like(features), torch.tensor([1, 0]))
    assert float(swapped[1].mean()) > 5 * float(both[1].mean())


def test_scales_are_joined_in_units_of_their_own_range() -> None:
    """0 at the mean of normal images and below, 1 where every scale is at its usual maximum."""
    model = scorer("whitened", classes=2)
    model.fit_range(0, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5]))
    model.fit_range(1, torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
    values = torch.tensor([[1.0, 2.0], [3.0, 2.5], [0.0, 0.0], [5.0, 2.0], [3.0, 3.5]])
    maps = values[:, :, None, None].expand(5, 2, 4, 4)
    joined = model.join(maps, torch.zeros(5, dtype=torch.long))
    z = torch.tensor([0.0, 1.0, 0.0, (4 / 2) ** 0.5, ((1 + 9) / 2) ** 0.5])
    torch.testing.assert_close(joined, z[:, None, None].expand(5, 4, 4))
    other = model.join(maps[3:4], torch.tensor([1]))
    torch.testing.assert_close(other, torch.full((1, 4, 4), ((25 + 4) / 2) ** 0.5))


def test_a_range_without_extent_stays_finite() -> None:
    model = scorer("whitened")
    model.fit_range(0, torch.tensor([2.0, 2.0]), torch.tensor([2.0, 2.0]))
    maps = torch.full((1, 2, 4, 4), 2.0)
    assert not model.join(maps, torch.tensor([0])).any()


def test_buffers_are_saved_only_as_needed() -> None:
    shared = {"centres", "descriptor_scale"}
    assert set(scorer("cosine").state_dict()) == shared
    own = {"floor", "peak", "mean_0", "whiten_0", "mean_1", "whiten_1"}
    assert set(scorer("whitened").state_dict()) == shared | own
    assert not list(scorer("whitened").parameters())


# Class finding


def test_the_descriptor_is_mean_and_deviation_of_the_deepest_map() -> None:
    features, _ = pair()
    descriptor = class_descriptor(features)
    deepest = features[-1].flatten(2)
    expected = torch.cat((deepest.mean(dim=2), deepest.std(dim=2, correction=0)), dim=1)
    torch.testing.assert_close(descriptor, expected)
    assert class_descriptor(tuple(f.half() for f in features)).dtype == torch.float32


def class_images(index: int, batch: int, seed: int) -> tuple[Tensor, ...]:
    """Images whose deepest map has a mean of its own per class."""
    centre = torch.zeros(CHANNELS[1])
    centre[index] = 3.0
    features, _ = pair(batch, seed)
    return (features[0], features[1] + centre.view(1, -1, 1, 1))


def test_the_class_is_found_from_the_features() -> None:
    model = scorer("cosine", classes=3)
    model.fit_classes([class_descriptor(class_images(i, 8, seed=i)) for i in range(3)])
    for i in range(3):
        found = model.find_class(class_images(i, 5, seed=50 + i))
        assert torch.equal(found, torch.full((5,), i))


def test_a_channel_that_never_varies_does_not_decide() -> None:
    """Distances are in deviations within a class, with a floor."""
    model = scorer("cosine", classes=2)
    width = 2 * CHANNELS[1]
    first, second = random(20, width, seed=1), random(20, width, seed=2) + 2.0
    first[:, 0] = second[:, 0] = 5.0
    model.fit_classes([first, second])
    assert bool((model.descriptor_scale > 0).all())
    torch.testing.assert_close(model.centres[1], second.mean(dim=0))
    within = torch.cat([first - first.mean(dim=0), second - second.mean(dim=0)])
    deviation = within.square().mean(dim=0).sqrt()
    torch.testing.assert_close(
        model.descriptor_scale - deviation, (0.05 * deviation.mean() + 1e-6).expand(width)
    )


def test_one_class_is_always_found() -> None:
    features, _ = pair()
    assert torch.equal(scorer("cosine").find_class(features), torch.zeros(2, dtype=torch.long))


# Smoothing


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("size", [(40, 40), (33, 64)])
def test_smoothing_is_scipys(sigma: float, size: tuple[int, int]) -> None:
    maps = random(2, 3, *size)
    expected = gaussian_filter(
        maps.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4
    )
    actual = gaussian_smooth(maps, sigma).double().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.5, 4.0, 100.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (32, 32)])
def test_smoothing_keeps_constants_on_maps_of_any_size(sigma: float, size: tuple[int, int]) -> None:
    maps = torch.full((2, 1, *size), 3.0)
    torch.testing.assert_close(gaussian_smooth(maps, sigma), maps)


def test_sigma_zero_changes_nothing() -> None:
    maps = random(1, 1, 8, 8)
    assert torch.equal(gaussian_smooth(maps, 0.0), maps)
