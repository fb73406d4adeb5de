"""From a device's name to torch's."""

from __future__ import annotations

import pytest
import torch

from mambaadv2.device import DEVICES, choose_device
from mambaadv2.errors import ConfigError


def test_auto_takes_a_gpu_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto") == torch.device(expected)
        assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match='"cuda" was asked for, but torch sees no CUDA device'):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["tpu", "", "CPU", "cuda:0"])
def test_other_names_are_refused(name: str) -> None:
    assert name not in DEVICES
    with pytest.raises(ConfigError, match='device: expected "auto", "cpu" or "cuda", got'):
        choose_device(name)
