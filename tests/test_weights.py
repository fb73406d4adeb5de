"""Encoder weights: packages, local files and the hub, each found, checked and recorded."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.models import VisionTransformer
from torch import Tensor

from mambaadv2.errors import ConfigError, WeightsError
from mambaadv2.model.encoder import FrozenEncoder, build_encoder
from mambaadv2.model.weights import (
    CONNECT_SECONDS,
    PACKAGED_ENCODERS,
    efficientnet_lite_names,
    find_weights,
    read_weights,
)

CATS = {281, 282, 283, 284, 285}  # tabby, tiger cat, Persian, Siamese, Egyptian
PALACE = 698


@pytest.fixture(scope="module")
def resnet18() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = timm.create_model("resnet18").state_dict()
    return {
        key: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for key, tensor in shapes.items()
    }


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Point the hub at an empty cache and at a port where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        use_endpoint(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def loaded(encoder: FrozenEncoder) -> dict[str, Tensor]:
    """Return the encoder's tensors under timm's names."""
    return {key.removeprefix("body.timm."): tensor for key, tensor in encoder.state_dict().items()}


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


# Packages


@pytest.mark.parametrize("name", PACKAGED_ENCODERS)
def test_every_packaged_tensor_has_its_place(name: str) -> None:
    classifier = timm.create_model(name)
    raw = torch.load(find_weights(name).path, weights_only=True)
    named = efficientnet_lite_names(raw)
    assert len(named) == len(raw)
    classifier.load_state_dict(named, strict=True)


def top5(name: str, picture: NDArray[np.uint8]) -> set[int]:
    """Classify the central square of a picture with the whole packaged network."""
    classifier = timm.create_model(name).eval()
    classifier.load_state_dict(read_weights(find_weights(name).path))
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = Image.fromarray(picture[top : top + side, left : left + side]).resize((224, 224))
    x = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        return set(classifier((x - 0.5) / 0.5)[0].topk(5).indices.tolist())


@pytest.mark.parametrize("name", PACKAGED_ENCODERS)
def test_the_packaged_network_knows_a_palace(name: str) -> None:
    assert PALACE in top5(name, load_sample_image("china.jpg"))


@pytest.mark.parametrize("name", PACKAGED_ENCODERS)
def test_the_packaged_network_knows_a_cat(name: str) -> None:
    pictures = pytest.importorskip("skimage.data", reason="scikit-image has the picture of a cat")
    assert len(CATS & top5(name, pictures.chelsea())) >= 3


@pytest.mark.parametrize("name", PACKAGED_ENCODERS)
def test_the_provenance_of_a_packaged_encoder(name: str) -> None:
    provenance = build_encoder(name).provenance
    assert (provenance.name, provenance.source) == (name, "packaged")
    assert provenance.licence == "Apache-2.0"
    assert provenance.file is not None
    assert provenance.sha256 is not None
    # The publisher put the first digits of the hash into the file's name.
    assert provenance.file.removesuffix(".pth").split("-")[-1] == provenance.sha256[:8]


@pytest.mark.parametrize(
    "name, install",
    [
        ("tf_efficientnet_lite0", "pip install mambaadv2"),
        ("tf_efficientnet_lite1", r"pip install mambaadv2\[encoders\]"),
    ],
)
def test_a_missing_package_says_what_to_install(
    name: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(WeightsError, match=f"{name}.*is not installed; run {install}$"):
        build_encoder(name)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"_conv_stem.weight": torch.ones(1)}, "expected 16 or 21 blocks, got 0"),
        ({f"_blocks.{i}._se.weight": torch.ones(1) for i in range(16)}, "unknown tensor _blocks.0"),
    ],
)
def test_other_efficientnets_are_refused(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        efficientnet_lite_names(tensors)


# Local files


@pytest.mark.parametrize(
    "suffix, wrapped",
    [(".safetensors", None), (".pth", None), (".pt", "model"), (".bin", "state_dict")],
)
def test_a_local_file_is_loaded_and_recorded(
    suffix: str, wrapped: str | None, resnet18: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(resnet18, path)
    else:
        torch.save(resnet18 if wrapped is None else {wrapped: resnet18, "epoch": 3}, path)
    encoder = build_encoder("resnet18", weights=path)
    assert encoder.provenance.source == "file"
    assert encoder.provenance.file == path.name
    assert encoder.provenance.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert encoder.provenance.licence is None
    for key, tensor in loaded(encoder).items():
        torch.testing.assert_close(tensor, resnet18[key], rtol=0, atol=0)


def test_a_transformers_file_is_loaded_before_its_positions_are_resampled(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    whole = timm.create_model("vit_tiny_patch16_224").eval()
    assert isinstance(whole, VisionTransformer)
    save_file(whole.state_dict(), path)
    encoder = build_encoder("vit_tiny_patch16_224", weights=path, image_size=(224, 224))
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        tokens = whole.forward_features((x - 0.5) / 0.5)[:, 1:]
    expected = tokens.transpose(1, 2).reshape(1, 192, 14, 14)
    torch.testing.assert_close(encoder(x)[2], expected, rtol=1e-4, atol=1e-5)


def test_what_lies_beyond_the_features_may_be_absent(
    resnet18: dict[str, Tensor], tmp_path: Path
) -> None:
    kept = {
        key: tensor
        for key, tensor in resnet18.items()
        if not key.startswith(("fc.", "layer4.")) and not key.endswith("num_batches_tracked")
    }
    save_file(kept, tmp_path / "short.safetensors")
    encoder = build_encoder("resnet18", weights=tmp_path / "short.safetensors")
    torch.testing.assert_close(loaded(encoder)["conv1.weight"], kept["conv1.weight"])


def test_names_that_timm_flattens_are_matched(tmp_path: Path) -> None:
    whole = timm.create_model("convnext_atto").state_dict()
    save_file(whole, tmp_path / "convnext.safetensors")
    encoder = build_encoder("convnext_atto", weights=tmp_path / "convnext.safetensors")
    key = "stages.2.blocks.1.mlp.fc1.weight"
    torch.testing.assert_close(loaded(encoder)[key.replace(".", "_", 1)], whole[key])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"conv1.weight": None}, r"not those of resnet18: 1 missing \(conv1.weight\)"),
        ({"mystery": torch.ones(2)}, r"1 unexpected \(mystery\)"),
        (
            {"conv1.weight": torch.ones(2, 3)},
            r"1 misshapen \(conv1.weight \(2, 3\) instead of \(64, 3, 7, 7\)\)",
        ),
        (
            {f"extra{i}": torch.ones(1) for i in range(5)},
            r"5 unexpected \(extra0, .*extra2, \.\.\.",
        ),
        ({"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}, "conv1.weight holds NaN"),
    ],
    ids=["missing", "unexpected", "misshapen", "many", "nan"],
)
def test_a_file_that_does_not_fit_is_refused(
    change: dict[str, Tensor | None], message: str, resnet18: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "wrong.safetensors"
    changed = {**resnet18, **change}
    save_file({key: tensor for key, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(WeightsError, match=message) as caught:
        build_encoder("resnet18", weights=path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"state_dict": {}, "path": Path()}, "pickled objects.*save_file"),
        ([torch.ones(2)], "expected a dictionary of tensors, got list"),
        ({}, "expected a dictionary of tensors, got nothing"),
        ({"epoch": 3}, "expected a dictionary of tensors, got int under 'epoch'"),
    ],
)
def test_a_pytorch_file_of_anything_else_is_refused(
    content: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"damaged{suffix}"):
        read_weights(path)


def test_a_cut_off_pytorch_file_is_refused(resnet18: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save(resnet18, path)
    path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(WeightsError, match=r"cut\.pth: not a readable PyTorch file"):
        read_weights(path)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    path.touch()
    with pytest.raises(WeightsError, match=r"expected one of \.safetensors.*got suffix '\.npz'"):
        build_encoder("resnet18", weights=path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pth: expected a file"):
        build_encoder("resnet18", weights=tmp_path / "nowhere.pth")


def test_a_file_and_random_weights_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pretrained=False"):
        build_encoder("resnet18", weights=tmp_path / "x.pth", pretrained=False)


# The hub


def assert_three_ways_out(error: WeightsError, repository: str) -> None:
    for hint in (repository, "--encoder tf_efficientnet_lite0", "--weights FILE", "HF_HOME"):
        assert hint in str(error)


def test_an_unreachable_hub_is_reported_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1:\d+ cannot be reached") as caught:
        build_encoder("resnet18")
    assert time.monotonic() - start < 2 * CONNECT_SECONDS + 2
    assert_three_ways_out(caught.value, "timm/resnet18.a1_in1k")


def test_a_silent_hub_is_reported_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mambaadv2.model.weights.CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(WeightsError, match=r"cannot be reached: .*(timed out|no answer)"):
            find_weights("resnet18")
        assert time.monotonic() - start < 2


def test_a_slow_name_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def resolve(*_args: object, **_options: object) -> list[object]:
        release.wait()
        return []

    monkeypatch.setattr("mambaadv2.model.weights.CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    use_endpoint(monkeypatch, "http://hub.example")
    with pytest.raises(WeightsError, match=r"no answer within 0\.2 s"):
        find_weights("resnet18")
    release.set()


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set") as caught:
        build_encoder("resnet18")
    assert_three_ways_out(caught.value, "timm/resnet18.a1_in1k")


def test_the_hubs_cache_needs_no_network(resnet18: dict[str, Tensor], tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    save_file(resnet18, snapshot / "model.safetensors")
    encoder = build_encoder("resnet18")
    digest = hashlib.sha256((snapshot / "model.safetensors").read_bytes()).hexdigest()
    assert encoder.provenance.source == "hub"
    assert encoder.provenance.file == "model.safetensors"
    assert encoder.provenance.sha256 == digest
    assert encoder.provenance.licence == "apache-2.0"
    torch.testing.assert_close(loaded(encoder)["conv1.weight"], resnet18["conv1.weight"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Serve a folder as the hub does; every file in it is in every repository."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            path = folder / self.path.rpartition("/")[2]
            self.send_response(200 if path.is_file() else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            if path.is_file():
                self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
                self.send_header("Content-Length", str(path.stat().st_size))
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write((folder / self.path.rpartition("/")[2]).read_bytes())

        def log_message(self, *_args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_download_is_loaded_recorded_and_cached(
    file: str, hub: Path, resnet18: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    if file == "model.safetensors":
        save_file(resnet18, hub / file)
    else:
        torch.save(resnet18, hub / file)
    encoder = build_encoder("resnet18")
    assert encoder.provenance.source == "hub"
    assert encoder.provenance.file == file
    assert encoder.provenance.sha256 == hashlib.sha256((hub / file).read_bytes()).hexdigest()
    torch.testing.assert_close(loaded(encoder)["conv1.weight"], resnet18["conv1.weight"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_weights("resnet18").path.name == file


@pytest.mark.usefixtures("hub")
def test_a_repository_without_weights_is_reported() -> None:
    with pytest.raises(WeightsError, match=r"has no model\.safetensors or pytorch_model\.bin"):
        find_weights("resnet18")


@pytest.mark.usefixtures("hub")
def test_a_failing_download_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> str:
        raise ConnectionResetError("peer went away")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(WeightsError, match="the download failed: peer went away") as caught:
        find_weights("resnet18")
    assert_three_ways_out(caught.value, "timm/resnet18.a1_in1k")
    assert isinstance(caught.value.__cause__, ConnectionResetError)


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(WeightsError, match=r"names no weights on the hub.*--weights FILE"):
        find_weights("legacy_seresnet18")
