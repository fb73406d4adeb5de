"""The decoder: its two paths against naive definitions, its directions, its sizes, its cost."""

from __future__ import annotations

import cmath
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mambaadv2.model import decoder as decoder_module
from mambaadv2.model.config import Fusion, ModelConfig, Order, Paths
from mambaadv2.model.decoder import (
    A_FLOOR,
    DSS,
    HSS,
    Decoder,
    PatchExpand,
    decay_rate,
    pointwise,
    scan_table,
)
from mambaadv2.model.local import DropPath
from mambaadv2.model.network import Network
from mambaadv2.scan import selective_scan

Config = Callable[..., ModelConfig]
Build = Callable[..., Network]
Captured = list[tuple[tuple[Tensor, ...], dict[str, Tensor], Tensor]]
NAMES = ("x", "B", "C", "dt", "A", "trap", "angle", "B_bias", "C_bias", "D")
ORDERS: tuple[Order, ...] = ("hilbert", "raster", "boustrophedon", "zorder", "zigzag")
CPU = torch.device("cpu")


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def randomise(module: nn.Module) -> None:
    """Move every parameter away from its start value, so that no term hides behind a 0 or 1."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def hss(config: ModelConfig, *, directions: int = 2, dim: int = 16) -> HSS:
    torch.manual_seed(0)
    block = HSS(config, dim, directions, 0.0)
    with torch.no_grad():
        block.dt_bias.uniform_(-3.0, -1.0)
    randomise(block)
    return block.eval()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    """Record what the blocks hand to the scan, and what they get back."""
    calls: Captured = []

    def record(*args: Any, **options: Any) -> Tensor:
        y: Tensor = selective_scan(*args, **options)
        calls.append((args, options, y))
        return y

    monkeypatch.setattr(decoder_module, "selective_scan", record)
    return calls


def flops(module: nn.Module, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(*shape))
    return int(counter.get_total_flops())


# Path R


def test_decay_rates_are_negative_and_join_smoothly() -> None:
    a = torch.linspace(-50, 50, 2001, dtype=torch.float64)
    rate = decay_rate(a)
    assert bool((rate <= -A_FLOOR).all())
    assert bool((rate.diff() <= 0).all())
    torch.testing.assert_close(rate[a >= 0], -(1 + a[a >= 0]))
    torch.testing.assert_close(decay_rate(torch.tensor([-1.0, -3.0])), -torch.tensor([0.5, 0.25]))
    assert float(decay_rate(torch.tensor(-1e9))) == pytest.approx(-A_FLOOR)


def mamba2(args: tuple[Tensor, ...], options: dict[str, Tensor]) -> Tensor:
    """Mamba-2, step by step: h_t = exp(dt_t A_t) h_{t-1} + dt_t x_t k_t^T, y_t = h_t q_t + D
    x_t."""
    t = dict(zip(NAMES, (a.double() for a in args), strict=True))
    total = torch.zeros_like(t["x"])
    for d, order in enumerate(options["order"]):
        k, q = t["B"] + t["B_bias"][d], t["C"] + t["C_bias"][d]
        h = torch.zeros(*t["x"].shape[:1], *t["x"].shape[2:], k.shape[-1], dtype=torch.float64)
        for i in order.tolist():
            x, dt = t["x"][:, i], t["dt"][:, d, i, :, None, None]
            h = h * (dt * t["A"][:, i, :, None, None]).exp()
            h = h + dt * x.unsqueeze(-1) * k[:, i].unsqueeze(-2)
            y = (h @ q[:, i].unsqueeze(-1)).squeeze(-1) + t["D"][d, :, None] * x
            total[:, i] += y * options["weights"][:, d].double().view(-1, 1, 1)
    return total


@pytest.mark.parametrize("directions", [1, 4])
def test_without_rotation_and_trapezoid_the_recurrence_is_mamba2(
    small_config: Config, captured: Captured, directions: int
) -> None:
    config = small_config(rotary=False, trapezoid=False, paths="recurrence")
    hss(config, directions=directions)(random(2, 6, 8, 16))
    (args, options, y), *others = captured
    assert not others
    assert args[6].shape[-1] == 0
    torch.testing.assert_close(y.double(), mamba2(args, options), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("switch", ["rotary", "trapezoid"])
def test_each_part_of_mamba3_changes_the_recurrence(
    small_config: Config, captured: Captured, switch: str
) -> None:
    config = small_config(**{"rotary": False, "trapezoid": False, switch: True})
    hss(config)(random(1, 4, 4, 16))
    args, options, y = captured[0]
    assert not torch.allclose(y.double(), mamba2(args, options), atol=1e-2)


@pytest.mark.parametrize(
    "fraction, angles", [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)]
)  # of 8 state dimensions
def test_the_rotary_fraction_sets_the_number_of_angles(
    small_config: Config, captured: Captured, fraction: float, angles: int
) -> None:
    hss(small_config(rotary_fraction=fraction))(random(1, 4, 4, 16))
    args, _, _ = captured[0]
    assert args[6].shape[-1] == angles


def test_sums_of_the_scan_stay_in_float32_under_autocast(
    small_config: Config, captured: Captured
) -> None:
    block = hss(small_config())
    x = random(1, 8, 8, 16)
    with torch.no_grad():
        exact = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = block(x)
    given = dict(zip(NAMES, captured[-1][0], strict=True))
    for name in ("dt", "A", "B", "C"):
        assert given[name].dtype == torch.float32, name
    assert given["x"].dtype == torch.bfloat16
    assert float((rough - exact).abs().max()) < 0.05 * float(exact.abs().max())


# SAPS


def test_directions_are_nested() -> None:
    for order in ORDERS:
        tables = [scan_table(order, 5, 8, count, CPU) for count in (1, 2, 4, 8)]
        for fewer, more in itertools.pairwise(tables):
            assert torch.equal(fewer, more[: len(fewer)])
        assert torch.equal(tables[-1].sort(dim=1).values, torch.arange(40).expand(8, 40))


def test_direction_weights_start_equal_and_sum_to_one(
    small_network: Build, captured: Captured
) -> None:
    network = small_network().eval()
    network(torch.rand(2, 3, 64, 64))
    for _, options, _ in captured:
        count = len(options["order"])
        torch.testing.assert_close(options["weights"], torch.full((2, count), 1 / count))
    captured.clear()
    blocks = [block for block in network.modules() if isinstance(block, HSS)]
    for block in blocks:
        if block.direction_head is not None:
            nn.init.normal_(block.direction_head.weight)
    network(torch.rand(2, 3, 64, 64))
    assert len(captured) == len(blocks)
    for _, options, _ in captured:
        weights = options["weights"]
        assert bool((weights > 0).all())
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
        if weights.shape[1] > 1:
            assert not torch.allclose(weights[0], weights[1]), "they must follow the image"


def test_direction_weights_can_be_switched_off(small_config: Config) -> None:
    block = hss(small_config(direction_weights=False), directions=4)
    assert block.direction_head is None
    weights = block._direction_weights(random(3, 4, 4, 16))
    assert torch.equal(weights, torch.full((3, 4), 0.25))


def test_stages_get_their_numbers_of_directions(small_network: Build, captured: Captured) -> None:
    small_network(directions=(1, 2, 4, 8)).eval()(torch.rand(1, 3, 64, 96))
    seen = [tuple(options["order"].shape) for _, options, _ in captured]
    assert seen == [(1, 6), (2, 24), (2, 24), (4, 96), (4, 96), (8, 384)]


@pytest.mark.parametrize("order", ORDERS)
def test_the_scan_follows_the_order(small_config: Config, captured: Captured, order: Order) -> None:
    hss(small_config(order=order), directions=8)(random(1, 3, 5, 16))
    assert torch.equal(captured[0][1]["order"], scan_table(order, 3, 5, 8, CPU))


# Path M


def naive_matrix(
    v: Tensor, keys: Tensor, queries: Tensor, step: Tensor, size: tuple[int, int]
) -> Tensor:
    """M_ts = w_s Re(sum_i conj(c_ti) b_si exp(i rate_i (place_s - place_t))), entry by entry.

    The state's halves are the real and imaginary parts; half of the pairs turn with the row.
    """
    (height, width), length, pairs = size, keys.shape[1], keys.shape[2] // 4
    rates = [32.0 ** (-i / max(1, pairs - 1)) for i in range(pairs)]
    b = torch.complex(*keys.double().chunk(2, dim=-1))
    c = torch.complex(*queries.double().chunk(2, dim=-1))
    share = step.double() / step.double().sum(dim=1, keepdim=True)
    y = torch.zeros_like(v, dtype=torch.float64)
    for t in range(length):
        for s in range(length):
            down, right = s // width - t // width, s % width - t % width
            turn = torch.tensor([cmath.exp(1j * r * down) for r in rates]
                                + [cmath.exp(1j * r * right) for r in rates],
                                dtype=torch.complex128)  # fmt: skip
            likeness = (c[:, t].conj() * b[:, s] * turn).sum(dim=-1).real
            y[:, t] += (likeness[:, None] * share[:, s])[..., None] * v[:, s].double()
    assert length == height * width
    return y


@pytest.mark.parametrize("size", [(3, 5), (4, 2), (1, 1)])
def test_path_m_is_an_explicit_matrix(small_config: Config, size: tuple[int, int]) -> None:
    block = hss(small_config(), directions=4)
    length = size[0] * size[1]
    v, keys, queries = random(2, length, 4, 8), random(2, length, 8), random(2, length, 8) + 1
    dt = random(2, length, 4)
    expected = naive_matrix(v, keys, queries, F.softplus(dt + block.dt_bias.mean(dim=0)), size)
    actual = block._matrix(v, keys, queries, dt, size)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


def test_path_m_knows_relative_position_only(small_config: Config) -> None:
    """The same content in another corner of a larger map gives the same answers there."""
    block = hss(small_config())
    v, dt = torch.zeros(1, 6, 6, 4, 8), torch.full((1, 36, 4), -1.0)
    keys, queries = torch.zeros(1, 6, 6, 8), torch.zeros(1, 6, 6, 8)
    content = (random(1, 3, 3, 4, 8), random(1, 3, 3, 8), random(1, 3, 3, 8))
    answers = []
    for i, j in ((0, 0), (3, 2)):
        for whole, patch in zip((v, keys, queries), content, strict=True):
            whole.zero_()
            whole[:, i : i + 3, j : j + 3] = patch
        v_rows, b_rows, c_rows = v.flatten(1, 2), keys.flatten(1, 2), queries.flatten(1, 2)
        y = block._matrix(v_rows, b_rows, c_rows, dt, (6, 6)).unflatten(1, (6, 6))
        answers.append(y[:, i : i + 3, j : j + 3])
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)


def test_path_m_is_linear_in_the_number_of_positions(small_config: Config) -> None:
    block = hss(small_config(paths="matrix"))
    counts = [flops(block, 1, side, side, 16) for side in (4, 8, 16)]
    assert counts[1] == 4 * counts[0]
    assert counts[2] == 4 * counts[1]


def test_the_gate_closes_path_m(small_config: Config) -> None:
    both, alone = hss(small_config()), hss(small_config(paths="recurrence"))
    state = both.state_dict()
    del state["gate_bias"]
    assert list(both.splits)[-1] == "g"
    state["in_proj.weight"] = state["in_proj.weight"][: -both.splits["g"]]
    alone.load_state_dict(state)
    x = random(2, 4, 4, 16)
    assert not torch.allclose(both(x), alone(x), atol=1e-3)
    with torch.no_grad():
        both.gate_bias.fill_(-200.0)
    torch.testing.assert_close(both(x), alone(x))


# Modules


def first_module(network: Network) -> DSS:
    """Return the DSS module of two blocks and two directions at stride 16."""
    stage = network.eval().decoder.stages[1]
    assert isinstance(stage, nn.Sequential)
    module = stage[0]
    assert isinstance(module, DSS)
    return module


@pytest.mark.parametrize("paths", ["both", "recurrence", "matrix"])
def test_a_block_is_a_residual(small_config: Config, paths: Paths) -> None:
    block = hss(small_config(paths=paths))
    x = random(2, 3, 5, 16)
    torch.testing.assert_close(block(x), x + block.increment(x))
    with torch.no_grad():
        block.out_proj.weight.zero_()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    "changes, absent",
    [
        ({}, ""),
        ({"trapezoid": False}, "trap"),
        ({"rotary": False}, "angle"),
        ({"rotary_fraction": 0.0}, "angle"),
        ({"direction_weights": False}, "direction_head"),
        ({"paths": "recurrence"}, "g gate_bias"),
        ({"paths": "recurrence", "trapezoid": False, "rotary": False}, "g gate_bias trap angle"),
        ({"paths": "matrix"}, "a trap angle g b_bias c_bias skip gate_bias direction_head"),
    ],
    ids=str,
)
def test_a_block_holds_what_its_paths_need(
    small_config: Config, changes: dict[str, object], absent: str
) -> None:
    """Widths of the projection and parameters per direction; 4 heads, 8 state dimensions."""
    missing = set(absent.split())
    widths = {"z": 32, "x": 32, "B": 8, "C": 8, "dt": 4, "a": 4, "trap": 4, "angle": 2, "g": 4}
    block = hss(small_config(**changes), directions=2)
    assert block.splits == {n: 0 if n in missing else width for n, width in widths.items()}
    assert block.in_proj.out_features == sum(w for n, w in widths.items() if n not in missing)
    shapes = {
        "dt_bias": (2, 4), "b_bias": (2, 4, 8), "c_bias": (2, 4, 8), "skip": (2, 4),
        "gate_bias": (4,), "direction_head": (2, 16),
    }  # fmt: skip
    always = ("norm.", "in_proj.", "conv.", "norm_b.", "norm_c.", "out_norm.", "out_proj.")
    held = {
        name.removesuffix(".weight"): tuple(p.shape)
        for name, p in block.named_parameters()
        if not name.startswith(always) and name != "direction_head.bias"
    }
    assert held == {n: shape for n, shape in shapes.items() if n not in missing}


def test_pointwise_is_the_linear_layer() -> None:
    linear = nn.Linear(6, 10, bias=False)
    x, target = random(2, 3, 5, 6), random(2, 3, 5, 10)
    gradients = []
    for apply in (linear, functools.partial(pointwise, linear)):
        inputs = x.clone().requires_grad_()
        y = apply(inputs)
        torch.testing.assert_close(y, linear(x))
        wanted = torch.autograd.grad((y * target).sum(), (inputs, linear.weight))
        gradients.append(wanted)
    for actual, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", ["beside", "concat"])
def test_fusions(small_network: Build, fusion: Fusion) -> None:
    module = first_module(small_network(fusion=fusion))
    assert len(module.blocks) == 2
    x = random(2, 24, 4, 6)
    states = x.permute(0, 2, 3, 1)
    for block in module.blocks:
        states = block(states)
    states = states.permute(0, 3, 1, 2)
    parts = [branch(x) for branch in module.branches]
    if fusion == "beside":
        expected = states + module.fuse(torch.cat(parts, dim=1))
    else:
        expected = x + module.fuse(torch.cat([states, *parts], dim=1))
    torch.testing.assert_close(module(x), expected)


def test_paths_none_leaves_only_the_local_branches(small_network: Build) -> None:
    for fusion in ("beside", "concat"):
        module = first_module(small_network(paths="none", fusion=fusion))
        assert not list(module.blocks)
        x = random(2, 24, 4, 4)
        parts = torch.cat([branch(x) for branch in module.branches], dim=1)
        torch.testing.assert_close(module(x), x + module.fuse(parts))


def test_local_kernels_set_the_branches(small_network: Build) -> None:
    module = first_module(small_network(local_kernels=(3, 5, 9)))
    sizes = [branch.get_submodule("spatial.conv").kernel_size for branch in module.branches]
    assert sizes == [(3, 3), (5, 5), (9, 9)]


@pytest.mark.parametrize("band_kernel, sizes", [(None, [3, 7]), (5, [5, 5])])
def test_the_band_kernel_is_the_branches_own_unless_given(
    small_network: Build, band_kernel: int | None, sizes: list[int]
) -> None:
    module = first_module(small_network(local_kernels=(3, 7), band_kernel=band_kernel))
    bands = [branch.get_submodule("spatial.band_conv").kernel_size for branch in module.branches]
    assert bands == [(size, size) for size in sizes]
    assert module(random(2, 24, 3, 5)).shape == (2, 24, 3, 5)


def test_patch_expand_doubles_and_keeps_places() -> None:
    expand = PatchExpand(6, 4)
    randomise(expand)
    x = random(2, 6, 3, 5)
    y = expand(x)
    assert y.shape == (2, 4, 6, 10)
    for i, j in ((0, 0), (2, 4)):
        values = expand.expand(x[:, :, i, j]).view(2, 2, 2, 4)
        patch = y[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].permute(0, 2, 3, 1)
        torch.testing.assert_close(patch, expand.norm(values))


def test_drop_path_grows_linearly_over_the_blocks(small_config: Config) -> None:
    config = small_config(drop_path=0.2, modules=((1,), (2,), (1, 1), (1,)))
    model = Decoder(config, (16, 12, 8))
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.2 * i / 5 for i in range(6)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 2)])
def test_reconstructions_have_the_encoders_shapes(
    small_network: Build, order: Order, size: tuple[int, int]
) -> None:
    h, w = size
    with torch.no_grad():
        rebuilt = small_network(order=order).eval().decoder(random(2, 32, h, w))
    assert all(bool(y.isfinite().all()) for y in rebuilt)
    assert [tuple(y.shape) for y in rebuilt] == [
        (2, 16, 2 * h, 2 * w), (2, 12, 4 * h, 4 * w), (2, 8, 8 * h, 8 * w),
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_the_cost_is_linear_in_the_number_of_positions(
    small_network: Build, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Per position, larger images cost no more once every stage is long enough for chunks."""
    monkeypatch.setenv("MAMBAADV2_NATIVE", "0")  # torch counts nothing inside a compiled kernel
    if backend != "auto":
        monkeypatch.setenv("MAMBAADV2_SCAN_BACKEND", backend)
    model = small_network().eval().decoder
    sides = (64, 128, 256)
    costs = [flops(model, 1, 32, side // 32, side // 32) / side**2 for side in sides]
    # A short sequence is cheaper than a long one, by up to the size of a chunk; never dearer.
    assert costs[0] < costs[1] < costs[2]
    assert costs[1] < 1.06 * costs[0]
    assert costs[2] < 1.02 * costs[1]


def test_scan_work_follows_the_directions(
    small_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K directions cost K times the scan of one."""
    monkeypatch.setenv("MAMBAADV2_NATIVE", "0")
    config = small_config(direction_weights=False)
    counts = [flops(hss(config, directions=k), 1, 16, 16, 16) for k in (1, 2, 4)]
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])
    assert counts[1] - counts[0] == 4 * (2 * 256 * 32 * 16 + 4 * 256 * 64)
