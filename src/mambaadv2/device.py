"""Where to compute: the names that a user may give, and the torch device behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mambaadv2.errors import ConfigError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """Torch device of a name in `DEVICES`; "auto" is a GPU when there is one.

    Raises `ConfigError` for another name, and for "cuda" where torch sees no CUDA device.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    import torch

    if name not in DEVICES:
        raise ConfigError(f'device: expected "auto", "cpu" or "cuda", got {name!r}')
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError('device: "cuda" was asked for, but torch sees no CUDA device here')
    return torch.device("cuda" if name != "cpu" and available else "cpu")
