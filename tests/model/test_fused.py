"""The local branches' fused operators: equal to torch's, forward and every gradient."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.fit import make_optimizer
from mambaadv2.model.fused import depthwise, instance_norm, norm_silu
from mambaadv2.model.local import FrequencyConv, LocalBranch, haar_transform, inverse_haar_transform
from mambaadv2.scan import native

needs_native = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))

# Channels beside the width of every instruction set, maps of one position and of odd sides.
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 1), (2, 5, 3, 7), (1, 17, 9, 4), (2, 64, 5, 5), (3, 70, 13, 11)]


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, exact: Tensor, tolerance: float = 3e-6) -> None:
    scale = max(1.0, float(exact.detach().abs().max()))
    torch.testing.assert_close(actual.double(), exact.double(), rtol=0, atol=tolerance * scale)


@needs_native
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "channels-first"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_silu_is_torchs_in_float64(shape: tuple[int, ...], last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    x = (2 + 3 * random(*shape)).contiguous(memory_format=layout).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    y, exact = norm_silu(x), F.silu(instance_norm(exact_x))
    close(y, exact)
    given = random(*shape, seed=4)
    [dx] = torch.autograd.grad(y, x, given)
    [exact_dx] = torch.autograd.grad(exact, exact_x, given.double())
    if shape[-1] * shape[-2] > 1:
        close(dx, exact_dx)
    else:
        assert not dx.any()


@needs_native
@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_is_torchs_in_float64(shape: tuple[int, ...], kernel: int) -> None:
    x = random(*shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = random(shape[1], 1, kernel, kernel, seed=5).requires_grad_()
    exact = [part.detach().double().requires_grad_() for part in (x, weight)]
    y, exact_y = depthwise(x, weight), depthwise(*exact)
    close(y, exact_y)
    given = random(*shape, seed=4)
    found = torch.autograd.grad(y, (x, weight), given)
    wanted = torch.autograd.grad(exact_y, exact, given.double())
    for part, whole in zip(found, wanted, strict=True):
        close(part, whole)


@needs_native
def test_a_branch_is_the_same_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    branch = LocalBranch(20, 5, "wavelet", 3).to(memory_format=torch.channels_last)
    x = random(2, 20, 9, 6).contiguous(memory_format=torch.channels_last)
    results = []
    for switch in ("1", "0"):
        monkeypatch.setenv("MAMBAADV2_NATIVE", switch)
        y = branch(x)
        loss = (y * random(*y.shape, seed=9)).sum()
        results.append((y, *torch.autograd.grad(loss, list(branch.parameters()))))
    for ours, torchs in zip(*results, strict=True):
        close(ours, torchs, 2e-5)


@needs_native
def test_a_batch_of_nothing_goes_through() -> None:
    branch = LocalBranch(16, 5, "wavelet", 3)
    y = branch(random(0, 16, 6, 6))
    assert y.shape == (0, 16, 6, 6)
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in branch.parameters())


@needs_native
@pytest.mark.filterwarnings("ignore")  # of torch's exporter about itself
def test_an_exported_branch_computes_the_same() -> None:
    branch = LocalBranch(16, 5, "wavelet", 3).eval().requires_grad_(False)
    x = random(2, 16, 8, 8)
    program = torch.export.export(branch, (x,))
    assert any("norm_silu" in str(node.target) for node in program.graph.nodes)
    close(program.module()(x), branch(x))


@needs_native
def test_the_weight_gradient_names_the_kernels_that_it_takes() -> None:
    x = random(1, 4, 5, 5)
    with pytest.raises(ConfigError, match=r"^kernel: expected one of \(5, 7\), got 3"):
        torch.ops.mambaadv2.depthwise_weight(x, x, 3)
    with pytest.raises(ConfigError, match="expected float32"):
        torch.ops.mambaadv2.norm_silu(x.bfloat16())


@needs_native
def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, given = random(3, 70, 12, 10), random(3, 70, 12, 10, seed=4)
    weight = random(70, 1, 7, 7).requires_grad_()
    x.requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = norm_silu(depthwise(x, weight))
            results.append((y, *torch.autograd.grad(y, (x, weight), given)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_native
def test_autocast_keeps_bfloat16_maps_and_float32_gradients() -> None:
    torch.manual_seed(0)
    branch = LocalBranch(16, 5, "wavelet", 3)
    x = random(2, 16, 8, 8)
    exact = branch(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = branch(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0, atol=0.1)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in branch.parameters())


@needs_native
def test_nan_stays_nan_in_its_channel() -> None:
    x = random(1, 20, 4, 4)
    x[0, 3, 1, 2] = torch.nan
    y = norm_silu(x)
    assert y[0, 3].isnan().all()
    assert not y[0, [*range(3), *range(4, 20)]].isnan().any()


@needs_native
def test_second_derivatives_are_refused() -> None:
    x = random(1, 4, 3, 3).requires_grad_()
    [dx] = torch.autograd.grad(norm_silu(x).square().sum(), x, create_graph=True)
    with pytest.raises(BackendError, match="second derivatives"):
        dx.sum().backward()


@needs_native
@pytest.mark.parametrize("op", ["norm_silu", "depthwise_weight"])
def test_operators_pass_torchs_own_checks(op: str) -> None:
    x = random(2, 5, 4, 3).contiguous(memory_format=torch.channels_last)
    arguments = (x,) if op == "norm_silu" else (x, x, 5)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.mambaadv2, op), arguments, test_utils=checks)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (5, 8), (7, 3)], ids=str)
def test_scaled_weights_are_scaled_bands(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = FrequencyConv(6, 5, "wavelet", 3)
    with torch.no_grad():
        conv.scale.copy_(random(24))
    x = random(2, 6, *size).requires_grad_()
    bands = conv.band_conv(haar_transform(x)) * conv.scale.view(1, -1, 1, 1)
    told = conv.conv(x) + inverse_haar_transform(bands, *size)
    y = conv(x)
    close(y, told)
    learned = [x, *conv.parameters()]
    given = random(*y.shape, seed=4)
    for ours, theirs in zip(
        torch.autograd.grad(y, learned, given),
        torch.autograd.grad(told, learned, given),
        strict=True,
    ):
        close(ours, theirs, 1e-5)


def test_the_fused_optimiser_follows_the_rule_of_the_plain_one() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 5)
    other = copy.deepcopy(layer)
    fast = make_optimizer(dict(layer.named_parameters()), 1e-2, 0.1, (0.9, 0.99))
    assert fast.defaults["fused"]
    plain = make_optimizer(dict(other.named_parameters()), 1e-2, 0.1, (0.9, 0.99))
    for group in plain.param_groups:
        group["fused"] = False
    for step in range(5):
        for module, optimizer in ((layer, fast), (other, plain)):
            optimizer.zero_grad()
            module(random(4, 7, seed=step)).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_instance_norm_is_torchs() -> None:
    x = 3 + 2 * random(2, 5, 6, 4)
    torch.testing.assert_close(instance_norm(x), F.instance_norm(x))
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(instance_norm(last), F.instance_norm(x))
    assert not instance_norm(random(2, 5, 1, 1)).any()
