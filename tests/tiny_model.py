"""A model small enough to train in a test within seconds."""

from __future__ import annotations

from mambaadv2.model.config import ModelConfig

SIDE = 64
TINY = ModelConfig(
    encoder="tf_efficientnet_lite0",
    image_size=(SIDE, SIDE),
    dims=(32, 16, 16),
    modules=((1,), (1,), (1,)),
    directions=(1, 1, 2),
    head_dim=16,
    state_dim=8,
    drop_path=0.0,
    score="whitened",
)
