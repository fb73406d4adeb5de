"""What a file is that was given as a run and is none, and what to do instead.

Files are looked at and never loaded. A pickle, which is what `.pth` and `.ckpt` hold, is read as a
list of opcodes, of which the texts are kept: names of tensors, of entries, of code it would call.
Nothing of it is built or run, and only its head is read, so neither a hostile nor a huge file
matters.
"""

from __future__ import annotations

import io
import itertools
import json
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

OWN_MARK = "mambaadv2"  # "format" in the header of our own safetensors files
RUN_FILES = ("model.json", "config.json", "metrics.jsonl")

# Without the tensors, which lie beside it, the pickle of a large model has a few hundred kB.
_HEAD_BYTES, _HEAD_OPCODES = 4_000_000, 1_000_000
_ENTRIES, _CANDIDATES = 1000, 20  # of a folder: how many to list, and how many of them to open
_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".onnx", ".safetensors")

_MAMBAAD_PARTS = ("net_t.", "mff_oce.", "net_s.")
_MAMBA = ".self_attention.A_logs"
_ADER_ENTRIES = {"net", "metric_recorder", "total_time"}
_LIGHTNING = "pytorch-lightning_version"
_HARMLESS_CODE = ("torch", "collections", "numpy", "_codecs")

_ANEW = (
    "Train anew on the same good images, which takes minutes: mambaadv2 train DATA --out RUN; "
    "then give RUN, the folder"
)


@dataclass(frozen=True, slots=True)
class _Pickle:
    """The texts of a pickle, in its order, and the functions and classes it names."""

    texts: tuple[str, ...]
    code: tuple[str, ...]


def explain_foreign(path: Path) -> str | None:
    """Say what `path` is, why it cannot be used as a run, and what to do; None if unknown.

    path: what a user gave as a run: a file, or a folder without `model.json`. None for what does
    not exist, for a folder in which nothing is recognised, and for a folder that a training of this
    package has begun. Never raises: a file that cannot be read is explained as such.
    """
    try:
        if path.is_dir():
            return _explain_folder(path)
        return _explain_file(path) if path.is_file() else None
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error}); expected a run folder"


def _explain_folder(folder: Path) -> str | None:
    if any((folder / name).exists() for name in RUN_FILES):
        return None
    entries = itertools.islice(folder.rglob("*"), _ENTRIES)
    found = sorted(path for path in entries if path.suffix.lower() in _SUFFIXES and path.is_file())
    kinds = [(path, kind) for path in found[:_CANDIDATES] if (kind := _kind(path)) != OWN_MARK]
    if not kinds:
        return None
    # What can be named says more than what cannot.
    path, kind = next(((p, k) for p, k in kinds if not k.startswith("a file")), kinds[0])
    return (
        f"{folder}: expected a run folder written by 'mambaadv2 train'; it has no model.json, but "
        f"{path.relative_to(folder)}, {kind}"
    )


def _explain_file(path: Path) -> str:
    kind = _kind(path)
    if kind == OWN_MARK or path.name in RUN_FILES:
        return f"{path}: one file of a run; give the folder that holds it: {path.parent}"
    return f"{path}: expected a run folder written by 'mambaadv2 train', got {kind}"


def _kind(path: Path) -> str:
    """What a file is, why it is no run and what to do; `OWN_MARK` for our own weights."""
    if path.suffix.lower() == ".onnx":
        return f"an ONNX graph, which has no thresholds and is not read here. {_ANEW}"
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return f"a file without content. {_ANEW}"
    if zipfile.is_zipfile(path):
        return _zip_kind(path)
    header = _safetensors_header(head)
    if header is not None:
        mark = header.pop("__metadata__", None)
        if isinstance(mark, dict) and mark.get("format") == OWN_MARK:
            return OWN_MARK
        return _tensors_kind(tuple(map(str, header)), "a safetensors file")
    if head[:1] == b"\x80":
        return _pickle_kind(_read_pickles(head))
    return f"a file of a kind that is not known here. {_ANEW}"


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
            if any("/code/" in f"/{name}" for name in names) and pickles:
                return f"a TorchScript program, which would be run to be read. {_ANEW}"
            if not pickles:
                return f"a file: a zip archive without a model in it. {_ANEW}"
            with archive.open(pickles[0]) as file:
                head = file.read(_HEAD_BYTES)
    except Exception:  # the readers of its compressions have no error in common
        return f"a file: a damaged or encrypted zip archive. {_ANEW}"
    return _pickle_kind(_read_pickles(head))


def _safetensors_header(head: bytes) -> dict[str, object] | None:
    """The JSON header of a safetensors file: its length in 8 bytes, then the text."""
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > len(head) - 8:
        return None
    try:
        header = json.loads(head[8 : 8 + length])
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _read_pickles(head: bytes) -> _Pickle:
    """Texts of up to four pickles in a row: torch's old format puts three small ones in front."""
    texts: list[str] = []
    code: list[str] = []
    stream = io.BytesIO(head)
    for _ in range(4):
        try:
            for name, argument in _opcodes(stream):
                if name == "GLOBAL":
                    code.append(str(argument).replace(" ", "."))
                elif name == "STACK_GLOBAL":
                    code.append(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts.append(argument)
        except (ValueError, OverflowError, MemoryError):
            break  # cut off, damaged, or tensors follow: what was read until here counts
    return _Pickle(tuple(texts), tuple(dict.fromkeys(code)))


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[str, object]]:
    opcodes = itertools.islice(pickletools.genops(stream), _HEAD_OPCODES)
    return ((opcode.name, argument) for opcode, argument, _ in opcodes)


def _pickle_kind(pickle: _Pickle) -> str:
    kind = _checkpoint_kind(pickle)
    foreign = [name for name in pickle.code if not name.startswith(_HARMLESS_CODE)]
    if foreign:
        kind += (
            f". The file was not loaded: reading it would call {foreign[0][:80]!r}, and loading "
            "such a file means to run what its author chose"
        )
    return kind


def _checkpoint_kind(pickle: _Pickle) -> str:
    texts = set(pickle.texts)
    if any(name.startswith("anomalib") for name in pickle.code):
        return f"a model of anomalib, with other networks than this package's. {_ANEW}"
    if _LIGHTNING in texts:
        return (
            "a Lightning checkpoint, for example of anomalib, with another network than this "
            f"package's. {_ANEW}"
        )
    return _tensors_kind(pickle.texts, "a PyTorch file", ader=texts >= _ADER_ENTRIES)


def _tensors_kind(names: Iterable[str], file_kind: str, *, ader: bool = False) -> str:
    """What a file is by the names of its tensors."""
    # DistributedDataParallel puts "module." in front of every name.
    tensors = [name.removeprefix("module.") for name in names if "." in name]
    parts = {part for part in _MAMBAAD_PARTS if any(name.startswith(part) for name in tensors)}
    if {"mff_oce.", "net_s."} <= parts and any(_MAMBA in name for name in tensors):
        return _mambaad_kind(tensors)
    if ader or parts:
        return (
            "a checkpoint of ADer's trainer, of another method than this package's and so with "
            f"another network. {_ANEW}"
        )
    if any(name.endswith(".weight") for name in tensors):
        return (
            f"{file_kind} with the weights of a network and nothing else: no classes, no "
            "thresholds. If they are an encoder's, train with them: mambaadv2 train DATA --out RUN "
            "--encoder NAME --weights FILE"
        )
    return f"{file_kind} without the weights of a network. {_ANEW}"


def _mambaad_kind(tensors: Iterable[str]) -> str:
    """MambaAD's own checkpoint: ADer's ckpt.pth, or its net.pth without the optimiser's state."""
    found = set(re.findall(r"\.conv(33|55|77)\.", " ".join(tensors)))
    kernels = ", ".join(sorted(pair[0] for pair in found)) or "none of them"
    return (
        "a checkpoint of MambaAD, the ancestor of what is built here (net_t, mff_oce and net_s, as "
        "ADer's trainer writes it). Its weights have no place in this package's decoder, which is "
        "made of other blocks: Mamba-3's recurrence and a matrix form where MambaAD has Mamba's "
        "scan, and frequency-enhanced convolutions where it has plain ones. Even for MambaAD's own "
        "code they are not all of one kind: there are files with kernels 5 and 7 and files with "
        f"3, 5 and 7, and its code builds one of the two; this file has {kernels}. {_ANEW}"
    )
