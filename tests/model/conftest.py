"""A network small enough to build in milliseconds, with every part of the real one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import EncoderProvenance, FrozenEncoder
from mambaadv2.model.network import Network

CHANNELS = (8, 12, 16)
SMALL = ModelConfig(
    encoder="tiny",
    image_size=(64, 64),
    dims=(32, 24, 16, 8),
    modules=((1,), (2,), (1, 1), (1,)),
    head_dim=8,
    state_dim=8,
    drop_path=0.0,
)


class TinyPyramid(nn.Module):
    """Three convolutions with BatchNorm in place of a timm backbone."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = CHANNELS
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, stride, stride), nn.BatchNorm2d(b), nn.SiLU())
            for a, b, stride in ((3, first, 4), (first, second, 2), (second, third, 2))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return tuple(maps)


@pytest.fixture(scope="session")
def small_config() -> Callable[..., ModelConfig]:
    """Return a function that gives the small config with the fields passed to it changed."""

    def change(**fields: object) -> ModelConfig:
        return dataclasses.replace(SMALL, **fields)  # type: ignore[arg-type]

    return change


@pytest.fixture(scope="session")
def small_network(small_config: Callable[..., ModelConfig]) -> Callable[..., Network]:
    """Return a function that builds a small network with the fields passed to it changed."""

    def build(**fields: object) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            provenance = EncoderProvenance(
                name="tiny", source="none", file=None, sha256=None, licence=None
            )
            encoder = FrozenEncoder(
                TinyPyramid(), channels=CHANNELS, mean=(0.5,) * 3, std=(0.25,) * 3,
                provenance=provenance,
            )  # fmt: skip
            return Network(small_config(**fields), encoder)

    return build
