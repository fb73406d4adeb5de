"""What `info` counts: every parameter once, every operation that torch sees, and no weights."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mambaadv2.errors import ConfigError
from mambaadv2.model.config import STAGE_STRIDES, Frequency, ModelConfig, Paths
from mambaadv2.model.decoder import HSS
from mambaadv2.model.encoder import build_encoder
from mambaadv2.model.info import (
    CPU_ATTENTION,
    ModelInfo,
    describe,
    matrix_flops,
    model_info,
    recurrence_flops,
)
from mambaadv2.model.network import Network
from mambaadv2.model.presets import PRESETS, preset_config

SMALL = ModelConfig(
    encoder="resnet10t",
    image_size=(64, 96),
    dims=(32, 32, 16),
    modules=((1,), (2,), (1, 1)),
    directions=(1, 2, 4),
    head_dim=8,
    state_dim=8,
)


def network(config: ModelConfig) -> Network:
    encoder = build_encoder(config.encoder, pretrained=False, image_size=config.image_size)
    return Network(config, encoder).eval()


@pytest.fixture(autouse=True)
def only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch see the scan's operations: it counts none inside a compiled kernel."""
    monkeypatch.setenv("MAMBAADV2_NATIVE", "0")


def counted(model: Network) -> int:
    """Count the operations that torch sees in one forward pass of the whole network."""
    mode = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with mode as counter, torch.no_grad():
        model(torch.zeros(1, 3, *model.config.image_size))
    return int(counter.get_total_flops())


@pytest.fixture(scope="module")
def r34() -> ModelInfo:
    return model_info(preset_config("r34"))


def test_r34_has_the_size_that_is_published_for_it(r34: ModelInfo) -> None:
    """Encoder 8.17 M and 3.95 G multiply-adds, neck 1.46 M and 0.27 G, as in the ancestor."""
    assert r34.encoder.parameters == 8_170_304
    assert r34.encoder.flops.total / 2e9 == pytest.approx(3.946, abs=0.001)
    assert r34.neck.parameters == 1_457_664
    assert r34.neck.flops.total / 2e9 == pytest.approx(0.267, abs=0.001)
    assert [part.parameters for part in r34.stages] == [
        6_839_264, 3_254_856, 1_277_640, 185_444,
    ]  # fmt: skip
    assert r34.outputs.parameters == 86_464
    assert r34.parameters == 21_271_636
    assert r34.trainable == 13_101_332
    assert r34.flops.total / 2e9 == pytest.approx(9.865, abs=0.001)
    assert r34.flops.convolution / 2e9 == pytest.approx(5.124, abs=0.001)
    assert r34.flops.linear / 2e9 == pytest.approx(1.918, abs=0.001)
    assert r34.flops.recurrence / 2e9 == pytest.approx(2.575, abs=0.001)
    assert r34.flops.matrix / 2e9 == pytest.approx(0.247, abs=0.001)


@pytest.mark.parametrize("name", PRESETS)
def test_parts_are_the_whole(name: str) -> None:
    config = dataclasses.replace(preset_config(name), image_size=(64, 64))
    info, model = model_info(config), network(config)
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert info.trainable == sum(p.numel() for p in model.trainable().values())
    assert info.parameters - info.trainable == info.encoder.parameters
    assert info.flops.total == sum(part.flops.total for part in info.parts)


@pytest.mark.parametrize("paths", ["both", "recurrence", "matrix", "none"])
@pytest.mark.parametrize("frequency", ["wavelet", "none"])
def test_operations_are_those_that_torch_counts(paths: Paths, frequency: Frequency) -> None:
    """Layers measured plus both paths by formula: nothing twice, nothing forgotten."""
    config = dataclasses.replace(SMALL, paths=paths, frequency=frequency)
    info = model_info(config)
    assert info.flops.total == counted(network(config))
    assert bool(info.flops.recurrence) == (paths in ("both", "recurrence"))
    assert bool(info.flops.matrix) == (paths in ("both", "matrix"))


def applied(layer: nn.Module, positions: int) -> int:
    """2 per weight and position."""
    return 2 * layer.get_parameter("weight").numel() * positions


@pytest.mark.parametrize("paths", ["both", "recurrence", "matrix", "none"])
def test_linear_layers_run_as_convolutions_are_told_apart(paths: Paths) -> None:
    """Each kind by its definition, 2 per weight and position: both kinds use the same kernels."""
    config = dataclasses.replace(SMALL, paths=paths)
    info, decoder = model_info(config), network(config).decoder
    for i, (part, stage) in enumerate(zip(info.stages, decoder.stages, strict=True)):
        sides = [side // STAGE_STRIDES[i] for side in config.image_size]
        positions, halved = math.prod(sides), math.prod(-(-side // 2) for side in sides)
        linear = convolution = 0
        for name, layer in stage.named_modules():
            if isinstance(layer, nn.Linear):  # the weights of the directions are one per image
                linear += applied(layer, 1 if name.endswith("direction_head") else positions)
            elif isinstance(layer, nn.Conv2d):
                convolution += applied(layer, halved if name.endswith("band_conv") else positions)
        if i > 0:
            expand = decoder.expands[i - 1].get_submodule("expand")
            linear += applied(expand, positions // 4)
        assert part.flops.linear == linear
        assert part.flops.convolution == convolution
    assert info.encoder.flops.linear == info.neck.flops.linear == info.outputs.flops.linear == 0


def test_attention_of_a_transformer_is_counted() -> None:
    config = dataclasses.replace(SMALL, encoder="vit_tiny_patch16_224", image_size=(64, 64))
    info = model_info(config)
    assert info.encoder.flops.other > 0
    assert info.flops.total == counted(network(config))


@pytest.mark.parametrize(
    "size, directions",
    [((2, 2), 1), ((5, 7), 2), ((6, 6), 1), ((9, 7), 8), ((16, 16), 4), ((10, 33), 2)],
)
def test_formulas_are_what_the_torch_forms_do(size: tuple[int, int], directions: int) -> None:
    """Short sequences, whole chunks and a last chunk that is filled up."""
    blocks = {
        paths: HSS(dataclasses.replace(SMALL, paths=paths), 16, directions, 0.0)
        for paths in ("both", "matrix")
    }
    x = torch.zeros(1, *size, 16)
    costs = {}
    for paths, block in blocks.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            block(x)
        costs[paths] = counter.get_total_flops()
    length = size[0] * size[1]
    head = 0 if directions == 1 else 2 * 16 * directions  # the weights of the directions
    rows = 3 * 4 + 2  # of the projection: a, trap and g of 4 heads, 2 angles
    projected = 2 * 16 * rows * length
    recurrence = recurrence_flops(blocks["both"], length)
    assert costs["both"] - costs["matrix"] - projected - head == recurrence
    assert recurrence_flops(blocks["matrix"], length) == 0
    heads, n, p = 4, 8, 8
    assert matrix_flops(blocks["both"], length) == 4 * length * n * p * heads


def test_the_formula_is_the_documented_one() -> None:
    block = HSS(SMALL, 16, 2, 0.0)
    heads, n, p, chunk = 4, 8, 8, 32
    assert recurrence_flops(block, 40) == 2 * heads * 2 * 40**2 * (n + p)
    assert recurrence_flops(block, 256) == 2 * heads * (2 * 256 * chunk * (n + p) + 4 * 256 * n * p)


def test_counting_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model_info(SMALL)
    assert torch.equal(torch.rand(4), expected)


def test_the_table_shows_every_part_and_the_totals(r34: ModelInfo) -> None:
    text = describe("lite", None, 64)
    info = model_info(preset_config("lite", image_size=(64, 64)))
    for part in info.parts:
        assert re.search(
            rf"^{re.escape(part.name)}\s.* {part.parameters / 1e6:.3f} M", text, re.MULTILINE
        )
    assert f"{info.parameters / 1e6:.3f} M" in text
    assert "64 x 64 pixels" in text
    assert "A multiply-add counts as 2 FLOPs" in text
    lines = text.splitlines()
    table = [line for line in lines if " M  " in line]
    assert len({len(line) for line in table}) == 1, "columns must line up"
    assert max(map(len, lines)) <= 120


def test_the_table_takes_another_encoder() -> None:
    text = describe("lite", "vit_tiny_patch16_224", 64)
    assert "encoder vit_tiny_patch16_224" in text
    assert "attention" in text


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="preset"):
        describe("big", None, None)
    with pytest.raises(ConfigError, match="resnet999"):
        describe("lite", "resnet999", None)
    with pytest.raises(ConfigError, match="image_size"):
        describe("lite", None, 100)
