"""Checkpoints of others, given as a run: named by their content and never loaded."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mambaadv2.foreign import explain_foreign

TRAIN = "mambaadv2 train DATA --out RUN"


class Touches:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, (f"touch {self.marker}",)


def mambaad(kernels: tuple[int, ...] = (5, 7)) -> dict[str, Tensor]:
    """Some tensors of MambaAD's network under the names that its code gives them."""
    lss = "net_s.layers_up.0.blocks.0"
    names = [
        "net_t.conv1.weight",
        "mff_oce.bn_layer.0.conv1.weight",
        "mff_oce.convf.weight",
        f"{lss}.smm_blocks.0.ln_1.weight",
        f"{lss}.smm_blocks.0.self_attention.A_logs",
        f"{lss}.smm_blocks.0.self_attention.scans.index_flat",
        f"{lss}.finalconv11.weight",
        *(f"{lss}.conv{k}{k}.0.weight" for k in kernels),
    ]
    return {name: torch.zeros(2) for name in names}


def ader(net: dict[str, Tensor]) -> dict[str, Any]:
    """What ADer's trainer saves as ckpt.pth."""
    return {
        "net": net,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.005}]},
        "scheduler": {"t_in_epochs": False},
        "scaler": None,
        "iter": 10,
        "epoch": 1,
        "metric_recorder": {"mAUROC_sp_max_bottle": [np.float64(98.5)]},
        "total_time": 12.5,
    }


def explained(path: Path) -> str:
    text = explain_foreign(path)
    assert text is not None
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def test_mambaads_checkpoint_is_named_with_the_way_out(tmp_path: Path) -> None:
    torch.save(ader(mambaad()), tmp_path / "ckpt.pth")
    text = explained(tmp_path / "ckpt.pth")
    assert "a checkpoint of MambaAD" in text
    assert "made of other blocks" in text
    assert "this file has 5, 7" in text
    assert TRAIN in text


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_mambaads_bare_weights_are_named_in_both_formats(
    tmp_path: Path, zipped: bool, prefix: str
) -> None:
    net = {prefix + name: tensor for name, tensor in mambaad((3, 5, 7)).items()}
    torch.save(net, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    text = explained(tmp_path / "net.pth")
    assert "a checkpoint of MambaAD" in text
    assert "this file has 3, 5, 7" in text


@pytest.mark.parametrize(
    "content, expected",
    [
        (ader({"net_encoder.weight": torch.zeros(1)}), "of ADer's trainer"),
        ({"net_t.conv1.weight": torch.zeros(1)}, "of ADer's trainer"),
        (
            {"pytorch-lightning_version": "2.5", "state_dict": {"model.w.weight": torch.zeros(1)}},
            "a Lightning checkpoint",
        ),
        ({"conv1.weight": torch.zeros(1), "bn1.bias": torch.zeros(1)}, "--weights FILE"),
        (torch.zeros(3), "without the weights of a network"),
        ([], "without the weights of a network"),
    ],
)
def test_other_checkpoints_are_told_apart(tmp_path: Path, content: object, expected: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    text = explained(tmp_path / "model.pt")
    assert expected in text
    assert "MambaAD, the ancestor" not in text
    assert "mambaadv2 train DATA" in text


def test_a_hostile_checkpoint_is_named_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = {**mambaad(), "extra": Touches(marker)}
        path = tmp_path / f"net{protocol}.pth"
        torch.save(content, path, pickle_protocol=protocol)
        text = explained(path)
        assert "a checkpoint of MambaAD" in text
        assert "not loaded: reading it would call 'posix.system'" in text
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Touches(marker), protocol))
        explained(tmp_path / "plain.pkl")
    assert not marker.exists()


def test_safetensors_are_told_apart(tmp_path: Path) -> None:
    save_file(mambaad(), tmp_path / "net.safetensors")
    assert "a checkpoint of MambaAD" in explained(tmp_path / "net.safetensors")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    assert "--weights FILE" in explained(tmp_path / "resnet.safetensors")


def test_a_file_of_our_own_run_leads_to_its_folder(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_file({"network.x": torch.zeros(1)}, weights, metadata={"format": "mambaadv2"})
    assert explained(weights).endswith(f"give the folder that holds it: {tmp_path}")
    assert explain_foreign(tmp_path) is None  # a run that lost its model.json is another matter
    (tmp_path / "model.json").write_text("{}", encoding="utf-8")
    assert "give the folder" in explained(tmp_path / "model.json")


@pytest.mark.parametrize(
    "name, data, expected",
    [
        ("model.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX graph"),
        ("empty.pth", b"", "without content"),
        ("photo.png", b"\x89PNG\r\n\x1a\n", "not known here"),
        ("cut.pth", b"\x80\x02}q\x00(X\x0a\x00\x00\x00net_s", "without the weights"),
        ("claims.safetensors", (1 << 62).to_bytes(8, "little") + b"{}", "not known here"),
        ("deep.safetensors", (9000).to_bytes(8, "little") + b"[" * 9000, "not known here"),
        ("broken.zip", b"PK\x05\x06" + bytes(18), "a zip archive without a model"),
    ],
)
def test_other_files_are_explained(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert expected in explained(tmp_path / name)


def test_a_torchscript_program_is_explained(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr("model/code/__torch__.py", "")
    assert "a TorchScript program" in explained(tmp_path / "model.pt")


def test_a_folder_is_explained_by_the_best_known_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"something")
    (tmp_path / "weights").mkdir()
    torch.save(mambaad(), tmp_path / "weights" / "net_500.pth")
    text = explained(tmp_path)
    assert "weights/net_500.pth, a checkpoint of MambaAD" in text


def test_nothing_is_said_of_what_holds_nothing_known(tmp_path: Path) -> None:
    assert explain_foreign(tmp_path) is None
    assert explain_foreign(tmp_path / "missing") is None
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_text("{}", encoding="utf-8")
    torch.save(mambaad(), begun / "state.pt")
    assert explain_foreign(begun) is None


def test_a_file_that_cannot_be_read_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"\x80\x02}.")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    assert "cannot be read (Input/output error)" in explained(path)


def test_the_size_of_the_tensors_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    header = b'{"conv1.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(200 << 30)  # a hole: it takes no space
    start = time.monotonic()
    assert "--weights FILE" in explained(path)
    hostile = tmp_path / "opcodes.pth"
    hostile.write_bytes(b"\x80\x02" + b"N0" * 20_000_000)
    explained(hostile)
    assert time.monotonic() - start < 60  # reading 200 GB takes longer; a second is usual


def test_looking_at_a_checkpoint_needs_no_torch(tmp_path: Path) -> None:
    torch.save(mambaad(), tmp_path / "net.pth")
    code = (
        "import sys, pathlib, mambaadv2.foreign as f;"
        f"print('MambaAD' in f.explain_foreign(pathlib.Path({str(tmp_path / 'net.pth')!r})),"
        "'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


@given(
    data=st.binary(max_size=200),
    head=st.sampled_from([b"", b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04", b"\x10" + bytes(7)]),
    suffix=st.sampled_from([".pth", ".ckpt", ".safetensors", ".png", ""]),
)
def test_no_content_raises(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes, suffix: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "drawn"
    folder.mkdir(exist_ok=True)
    path = folder / f"file{suffix}"
    path.write_bytes(head + data)
    text = explained(path)
    assert text.isprintable()
