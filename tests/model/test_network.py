"""The whole network: what learns and what never does, start values, sizes, repeatability."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from mambaadv2.fit import make_optimizer
from mambaadv2.model.config import Frequency, Fusion, ModelConfig, Order, Paths
from mambaadv2.model.decoder import DT_MAX, DT_MIN, HSS, axial_phases, scan_table
from mambaadv2.model.network import (
    LOSS_WEIGHT,
    PCA_GAIN,
    Network,
    pca_start,
    reconstruction_loss,
    set_feature_scale,
)

Build = Callable[..., Network]
ALL_PATHS: tuple[Paths, ...] = ("both", "recurrence", "matrix", "none")
FREQUENCIES: tuple[Frequency, ...] = ("wavelet", "fft", "none")
FUSIONS: tuple[Fusion, ...] = ("beside", "concat")
ORDERS: tuple[Order, ...] = ("hilbert", "raster", "boustrophedon", "zorder", "zigzag")


def images(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


def loss_of(network: Network, batch: Tensor) -> Tensor:
    features, rebuilt = network(batch)
    return torch.stack(list(reconstruction_loss(features, rebuilt).values())).sum()


def learn(network: Network) -> dict[str, Tensor | None]:
    """Gradients of all trainable parameters after one forward and backward pass."""
    network.train()
    loss_of(network, images()).backward()
    return {name: p.grad for name, p in network.trainable().items()}


def deep_modules(network: Network) -> Iterator[tuple[str, nn.Module]]:
    return ((n, m) for n, m in network.named_modules() if not n.startswith("encoder"))


# What learns


@pytest.mark.parametrize(
    "paths, frequency, fusion", [*itertools.product(ALL_PATHS, FREQUENCIES, FUSIONS)]
)
def test_every_switch_builds_runs_and_learns(
    small_network: Build, paths: Paths, frequency: Frequency, fusion: Fusion
) -> None:
    gradients = learn(small_network(paths=paths, frequency=frequency, fusion=fusion))
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    for name, gradient in gradients.items():
        assert gradient is not None
        assert bool(gradient.isfinite().all()), name


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary": False},
        {"trapezoid": False},
        {"paths": "recurrence", "rotary": False, "trapezoid": False},
        {"paths": "recurrence", "direction_weights": False},
        {"paths": "matrix", "rotary": False, "trapezoid": False, "direction_weights": False},
        {"direction_weights": False},
        {"rotary_fraction": 0.0},
        {"rotary_fraction": 1.0},
        {"local_kernels": (3,)},
        {"directions": (1, 1, 1, 1)},
        {"directions": (8, 8, 8, 8)},
        {"dims": (32, 24, 16), "modules": ((1,), (1, 2), (1,)), "directions": (1, 1, 2)},
        {"expand": 1},
        {"head_dim": 4, "state_dim": 4},
        {"drop_path": 0.5},
        *({"order": order} for order in ORDERS),
    ],
    ids=str,
)
def test_no_parameter_is_dead(small_network: Build, changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    gradients = learn(small_network(**changes))
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients.values())


@pytest.mark.parametrize(
    "paths, frequency, fusion", [*itertools.product(ALL_PATHS, FREQUENCIES, FUSIONS)]
)
def test_every_gradient_is_more_than_rounding(
    small_network: Build, paths: Paths, frequency: Frequency, fusion: Fusion
) -> None:
    network = small_network(paths=paths, frequency=frequency, fusion=fusion)
    if paths == "matrix":
        # At the small steps of the start softplus is an exponential, and the shares of path M
        # divide a common factor out again: move to where dt_bias has its effect.
        for block in network.modules():
            if isinstance(block, HSS):
                nn.init.zeros_(block.dt_bias)
    gradients = learn(network)
    sizes = {name: 0.0 if g is None else float(g.abs().max()) for name, g in gradients.items()}
    assert [name for name, size in sizes.items() if size < 1e-6 * max(sizes.values())] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rotary": False, "trapezoid": False},
        {"paths": "recurrence"},
        {"paths": "recurrence", "rotary": False, "trapezoid": False},
        {"paths": "matrix"},
    ],
    ids=str,
)
def test_every_row_of_the_fused_projection_is_used(
    small_network: Build, changes: dict[str, object]
) -> None:
    network = small_network(**changes)
    learn(network)
    for name, block in deep_modules(network):
        if isinstance(block, HSS):
            gradient = block.in_proj.weight.grad
            assert gradient is not None
            assert bool(gradient.abs().amax(dim=1).gt(0).all()), name


def test_the_encoder_never_trains(small_network: Build) -> None:
    network = small_network().train()
    before = {name: t.clone() for name, t in network.encoder.state_dict().items()}
    assert not any(module.training for module in network.encoder.modules())
    assert network.neck.training
    assert not any(p.requires_grad for p in network.encoder.parameters())
    optimizer = make_optimizer(network.trainable(), 1e-2, 1e-4, (0.9, 0.999))
    moved = {name: p.detach().clone() for name, p in network.trainable().items()}
    for _ in range(2):
        loss_of(network, images()).backward()
        optimizer.step()
    after = network.encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    still = [n for n, p in network.trainable().items() if torch.equal(p, moved[n])]
    assert still == []


def test_trainable_is_everything_else(small_network: Build) -> None:
    network = small_network()
    names = set(network.trainable())
    everything = dict(network.named_parameters())
    assert {n for n in everything if n not in names} == {
        n for n in everything if n.startswith("encoder.")
    }
    assert all(p.requires_grad for p in network.trainable().values())


@pytest.mark.parametrize("frequency", FREQUENCIES)
@pytest.mark.parametrize("paths", ALL_PATHS)
def test_the_optimiser_has_every_parameter_once(
    small_network: Build, paths: Paths, frequency: Frequency
) -> None:
    network = small_network(paths=paths, frequency=frequency)
    parameters = network.trainable()
    optimizer = make_optimizer(parameters, 1e-3, 1e-2, (0.9, 0.999), state_share=0.2)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(parameters)
    assert {id(p) for p in held} == {id(p) for p in parameters.values()}
    matrices, states = set[int](), set[int]()
    for _, module in deep_modules(network):
        if isinstance(module, nn.Conv2d | nn.Linear):
            matrices.add(id(module.weight))
        if isinstance(module, HSS):
            states |= {id(p) for p in module.parameters()}
    assert len(optimizer.param_groups) == 4
    for group in optimizer.param_groups:
        assert group["weight_decay"] in (0.0, 1e-2)
        assert group["share"] in (1.0, 0.2)
        for parameter in group["params"]:
            assert (id(parameter) in matrices) == (group["weight_decay"] > 0)
            assert (id(parameter) in states) == (group["share"] == 0.2)


def test_a_few_steps_lower_the_loss(small_network: Build) -> None:
    network = small_network().train()
    optimizer = make_optimizer(network.trainable(), 3e-3, 1e-4, (0.9, 0.999))
    losses = []
    for _ in range(8):
        loss = loss_of(network, images())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("paths", ["both", "recurrence", "matrix"])
def test_predicting_first_and_training_afterwards(small_network: Build, paths: Paths) -> None:
    """Tables that a prediction in inference mode has left behind must serve the gradients."""
    tables = (scan_table, axial_phases)
    for table in tables:
        table.cache_clear()
    network = small_network(paths=paths)
    with torch.inference_mode():
        expected = network.eval()(images())[1]
    assert expected[0].is_inference()
    misses = [table.cache_info().misses for table in tables]
    assert [count > 0 for count in misses] == [paths != "matrix", paths != "recurrence"]
    gradients = learn(network)
    assert [table.cache_info().misses for table in tables] == misses, "they must be the same tables"
    for table in tables:
        table.cache_clear()
    fresh = learn(small_network(paths=paths))
    for name, gradient in gradients.items():
        assert gradient is not None
        torch.testing.assert_close(gradient, fresh[name], msg=name)


# Shapes and repeatability


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 64), (32, 128)])
@pytest.mark.parametrize("order", ["hilbert", "zigzag"])
def test_any_multiple_of_32(small_network: Build, size: tuple[int, int], order: Order) -> None:
    height, width = size
    network = small_network(order=order).eval()
    with torch.no_grad():
        features, rebuilt = network(images(2, height, width))
    expected = [
        (2, c, height // s, width // s) for c, s in zip((8, 12, 16), (4, 8, 16), strict=True)
    ]
    assert [tuple(f.shape) for f in features] == expected
    assert [tuple(r.shape) for r in rebuilt] == expected
    assert all(bool(r.isfinite().all()) for r in rebuilt)


def test_three_stages_rebuild_the_two_deeper_scales(small_network: Build) -> None:
    network = small_network(dims=(32, 24, 16), modules=((1,),) * 3, directions=(1, 1, 2)).eval()
    assert network.channels == (12, 16)
    features, rebuilt = network(images())
    assert [tuple(f.shape[1:]) for f in features] == [(12, 8, 8), (16, 4, 4)]
    assert [tuple(r.shape[1:]) for r in rebuilt] == [(12, 8, 8), (16, 4, 4)]
    whole = network.encoder(images())
    assert all(torch.equal(f, e) for f, e in zip(features, whole[1:], strict=True))


@torch.no_grad()
def test_evaluation_is_repeatable_and_independent_of_the_batch(small_network: Build) -> None:
    network = small_network(drop_path=0.5).eval()
    batch = images(2)
    _, together = network(batch)
    _, again = network(batch)
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    singles = [network(batch[i : i + 1])[1] for i in range(2)]
    for scale, rebuilt in enumerate(together):
        alone = torch.cat([single[scale] for single in singles])
        torch.testing.assert_close(rebuilt, alone, rtol=1e-3, atol=1e-3)


def test_drop_path_is_random_in_training_only(small_network: Build) -> None:
    network = small_network(drop_path=0.5).train()
    torch.manual_seed(0)
    first, second = (network(images())[1][0] for _ in range(2))
    assert not torch.allclose(first, second)


def test_memory_layout_does_not_change_the_numbers(small_network: Build) -> None:
    network = small_network().eval()
    features = network.features(images())
    scaled = network.scaled(features)
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in scaled)
    with torch.no_grad():
        expected = network.reconstruct(scaled)
        for part in (network.neck, network.decoder):
            part.to(memory_format=torch.contiguous_format)
        actual = network.reconstruct(tuple(f.contiguous() for f in scaled))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_state_holds_no_tables_and_restores_the_network(small_network: Build) -> None:
    network = small_network().eval()
    expected = network(images())[1]
    state = network.state_dict()
    whole = {name for name, t in state.items() if not t.is_floating_point()}
    assert all(name.endswith("num_batches_tracked") for name in whole), sorted(whole)
    assert set(state) == set(dict(network.named_parameters())) | {
        name for name in state if "running_" in name or "num_batches" in name
    } | {"feature_scale"}  # fmt: skip
    other = small_network().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(state)
    for a, b in zip(other(images())[1], expected, strict=True):
        assert torch.equal(a, b)


# Loss and start values


def test_the_loss_is_five_times_the_squared_error_of_each_scale() -> None:
    features = (torch.zeros(2, 3, 8, 6), torch.ones(2, 4, 4, 3))
    rebuilt = (torch.full((2, 3, 8, 6), 2.0), torch.ones(2, 4, 4, 3).bfloat16())
    terms = reconstruction_loss(features, rebuilt)
    assert {name: float(t) for name, t in terms.items()} == {
        "mse_8x6": LOSS_WEIGHT * 4.0,
        "mse_4x3": 0.0,
    }


def deviation(tensor: Tensor) -> float:
    return float(tensor.detach().std(correction=0))


def test_start_values_are_those_of_the_table(small_network: Build) -> None:
    dims, modules = (512, 256, 128, 64), ((1,), (1,), (1,), (1,))
    network = small_network(dims=dims, modules=modules, head_dim=32, state_dim=32)
    for name, module in deep_modules(network):
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            mode = module.out_channels if name.startswith("neck") else module.in_channels
            fan = kernel * mode // (1 if name.startswith("neck") else module.groups)
            if module.weight.numel() > 2000:
                assert deviation(module.weight) == pytest.approx(math.sqrt(2 / fan), rel=0.1), name
        if isinstance(module, nn.Linear) and not name.endswith("direction_head"):
            expected = module.in_features**-0.5
            assert deviation(module.weight) == pytest.approx(expected, rel=0.1), name
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            assert not module.bias.any(), name


def test_start_values_of_the_state_space_parameters(small_network: Build) -> None:
    blocks = [m for m in small_network().modules() if isinstance(m, HSS)]
    steps = torch.cat([nn.functional.softplus(b.dt_bias.detach()).flatten() for b in blocks])
    assert float(steps.min()) >= DT_MIN * 0.999
    assert float(steps.max()) <= DT_MAX * 1.001
    # Uniform in the logarithm: its mean is half way, within five deviations of a mean.
    middle = (math.log(DT_MIN) + math.log(DT_MAX)) / 2
    width = math.log(DT_MAX / DT_MIN) / math.sqrt(12 * len(steps))
    assert abs(float(steps.log().mean()) - middle) < 5 * width
    for block in blocks:
        for ones in (block.b_bias, block.c_bias, block.skip):
            assert torch.equal(ones, torch.ones_like(ones))
        assert not block.gate_bias.any()
        if block.direction_head is not None:
            assert not block.direction_head.weight.any()
            assert not block.direction_head.bias.any()


def test_the_seed_decides_the_start(small_config: Callable[..., ModelConfig],
                                    small_network: Build) -> None:  # fmt: skip
    encoder = small_network().encoder
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(Network(small_config(), encoder).trainable())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(
        states[0]["decoder.expands.0.expand.weight"], states[2]["decoder.expands.0.expand.weight"]
    )


def structured(batch: int = 6) -> tuple[Tensor, ...]:
    """Features with a few strong directions per scale, and a mean."""
    generator = torch.Generator().manual_seed(9)
    maps = []
    for c, side in ((8, 16), (12, 8), (16, 4)):
        mixing = torch.linalg.qr(torch.randn(c, c, generator=generator)).Q
        spread = 3.0 * 0.7 ** torch.arange(c)
        values = torch.randn(batch, side, side, c, generator=generator) * spread @ mixing.T
        maps.append((values + torch.randn(c, generator=generator)).permute(0, 3, 1, 2))
    return tuple(maps)


@torch.no_grad()
def test_pca_start_spans_the_leading_components(small_network: Build) -> None:
    network = small_network(dims=(32, 8, 8, 16))
    features = structured()
    set_feature_scale(network, features)
    pca_start(network, features)
    for head, scaled in zip(reversed(network.decoder.heads), network.scaled(features), strict=True):
        assert isinstance(head, nn.Conv2d)
        rows = scaled.permute(0, 2, 3, 1).flatten(0, 2)
        silent = head(torch.zeros(1, head.in_channels, 1, 1)).flatten()
        torch.testing.assert_close(silent, rows.mean(dim=0))
        rank = min(head.in_channels, head.out_channels)
        weight = head.weight[:, :, 0, 0]
        values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0))
        leading = vectors.flip(1)[:, :rank]
        expected = (leading * values.flip(0)[:rank]) @ leading.T * PCA_GAIN**2
        torch.testing.assert_close(weight @ weight.T, expected, rtol=1e-3, atol=1e-4)
        assert not weight[:, rank:].any()


@torch.no_grad()
def test_pca_start_rebuilds_all_but_the_rest(small_network: Build) -> None:
    """With the right hidden state, what is left is the variance beyond the leading components."""
    network = small_network(dims=(32, 6, 6, 6), head_dim=4)
    features = structured()
    pca_start(network, features)
    for head, feature in zip(reversed(network.decoder.heads), features, strict=True):
        assert isinstance(head, nn.Conv2d)
        rows = feature.permute(0, 2, 3, 1).flatten(0, 2)
        centred = rows - rows.mean(dim=0)
        hidden = torch.linalg.lstsq(head.weight[:, :, 0, 0], centred.T).solution
        rebuilt = head(hidden.T[:, :, None, None]).flatten(1)
        left = (rows - rebuilt).square().sum(dim=1).mean()
        values = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0))
        torch.testing.assert_close(left, values[:-6].sum(), rtol=1e-3, atol=1e-4)


def test_feature_scale_is_the_deviation_over_everything(small_network: Build) -> None:
    network = small_network()
    features = structured()
    set_feature_scale(network, features)
    expected = torch.tensor([float(f.std(correction=0)) for f in features])
    torch.testing.assert_close(network.feature_scale, expected)
    for scaled, feature in zip(network.scaled(features), features, strict=True):
        assert deviation(scaled) == pytest.approx(1.0, rel=1e-5)
        torch.testing.assert_close(scaled * feature.std(correction=0), feature)
    assert "feature_scale" in network.state_dict()


def test_a_constant_feature_is_not_divided_by_zero(small_network: Build) -> None:
    network = small_network()
    set_feature_scale(network, tuple(torch.full_like(f, 7.0) for f in structured()))
    assert torch.equal(network.feature_scale, torch.ones(3))
