"""Training: good images in, a run folder out. The loop is flat and in order of time.

Nothing here looks at test images: the split is train/good, of which a part is held out for the
scorer's statistics and the thresholds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mambaadv2 import __version__
from mambaadv2.checkpoint import (
    ModelCard,
    calibration_fields,
    make_scorer,
    remove_run,
    save_run,
)
from mambaadv2.data.features import CachePlan, slices
from mambaadv2.data.verify import OnError, usable_records
from mambaadv2.device import choose_device
from mambaadv2.errors import CheckpointError, ConfigError, TrainingError
from mambaadv2.files import locked, remove_unfinished, writing_to
from mambaadv2.fit import Keeper, Plan, StepPlan, TimePlan, TrainConfig, fit, steps_per_epoch
from mambaadv2.heldout import HeldOut, fit_on_heldout, threshold_words
from mambaadv2.model.config import STAGE_STRIDES, ModelConfig
from mambaadv2.model.encoder import build_encoder
from mambaadv2.model.network import Network
from mambaadv2.model.presets import preset_config
from mambaadv2.model.scoring import Scorer
from mambaadv2.modelcard import write_model_card
from mambaadv2.prepare import (
    DataRecord,
    Part,
    Sources,
    calibration_seconds,
    encode_files,
    held_files,
    learn_files,
    plan_features,
    record_data,
    require_batch,
    require_going,
    require_space,
    set_start,
    split_records,
)
from mambaadv2.rehearsal import training_need
from mambaadv2.resume import (
    is_finished,
    require_nothing_unfinished,
    require_same_run,
    write_data,
)
from mambaadv2.runlog import RunLog, settings_of
from mambaadv2.scan import backends_in_use, library
from mambaadv2.signals import StopRequest, stop_on_signal
from mambaadv2.snapshot import Snapshot, Snapshots
from mambaadv2.suspect_sheet import find_suspects, write_suspects

LEAST_SHARE = 0.1  # of `minutes`, for training, where features and calibration leave less

# Length and batch of a run where the caller names none.
PRESET_TRAINING: Mapping[str, TrainConfig] = {
    "lite": TrainConfig(minutes=30.0, batch_size=8, reference_batch=8),
    "r34": TrainConfig(epochs=100, batch_size=16, shape="step"),
}


def train(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preset: str = "lite",
    encoder: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    limit_classes: Sequence[str] | None = None,
    on_error: OnError = "stop",
    layout: str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train one model on all classes of a data set and write a run folder; returns its path.

    data: a data set or manifest, as in `list_records`; layout: its name, None recognises it. out:
    folder to write. preset: "lite" or "r34". encoder, weights: another timm encoder, its weights
    from a file. epochs or minutes: length of the run; by default the preset's. image_size: side of
    the input in pixels, a multiple of 32. limit_classes: learn only these. batch_size: images per
    step; the learning rate follows it. seed: of every random choice. device: "auto" is a GPU where
    there is one. precision: of the decoder's arithmetic while it trains. on_error: "stop" at files
    that cannot be used, listing all, or "skip" them. resume: go on with the interrupted run in
    `out`; begin where there is none, leave a finished one. progress: bars and messages on stderr.
    On a CPU, seed and number of threads fix the bits of the result unless `minutes` is its length.

    Before any work: `DataError` for a wrong root, `BadFilesError` for files that cannot be used,
    `WeightsError` for weights that cannot be had, `ConfigError` for a value out of range, a disk
    without room or an unfinished run in `out`, `CheckpointError` for a run to resume that was begun
    otherwise, `RunBusyError` where another process writes to `out`. Then `TrainingError` when the
    loss stops being finite, `TrainingInterruptedError` after SIGINT or SIGTERM, with all saved. A
    model in `out` is removed when the work begins: after an error none of an older run is there.

    >>> from mambaadv2 import train  # doctest: +SKIP
    >>> run = train("parts", "runs/parts", minutes=10)  # doctest: +SKIP
    """
    if epochs is not None and minutes is not None:
        raise ConfigError("epochs, minutes: expected at most one of them")
    if image_size is not None and (image_size < 32 or image_size % 32):
        raise ConfigError(f"image_size: expected a multiple of 32, at least 32, got {image_size}")
    size = None if image_size is None else (image_size, image_size)
    model = preset_config(preset, encoder=encoder, image_size=size)
    base = PRESET_TRAINING[preset]
    config = dataclasses.replace(
        base,
        epochs=base.epochs if epochs is None and minutes is None else epochs,
        minutes=base.minutes if epochs is None and minutes is None else minutes,
        batch_size=base.batch_size if batch_size is None else batch_size,
        seed=seed,
        device=device,
        precision=precision,
    )
    return train_model(
        data,
        out,
        model,
        config,
        weights=weights,
        classes=limit_classes,
        on_error=on_error,
        layout=layout,
        resume=resume,
        progress=progress,
    )


def train_model(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: ModelConfig,
    config: TrainConfig,
    *,
    weights: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    on_error: OnError = "stop",
    layout: str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """As `train`, with every field of the model and of the run in the caller's hands."""
    start = time.monotonic()
    folder, device = Path(out), choose_device(config.device)
    with _own_folder(folder):
        snapshots = Snapshots(folder, config.save_seconds)
        snapshots.tidy()
        if not resume:
            require_nothing_unfinished(folder, snapshots)
        elif is_finished(folder):
            # Nothing is left to do, so the images are not asked for.
            require_same_run(folder, settings_of(model=model, training=config))
            _finish(folder, snapshots)
            if progress:
                print(f"{folder}: finished already", file=sys.stderr)
            return folder
        selection = usable_records(
            data,
            split="train",
            classes=classes,
            on_error=on_error,
            layout=layout,
            progress=progress,
        )
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            stop_on_signal() as stop,
        ):
            torch.manual_seed(config.seed)
            backbone = build_encoder(
                model.encoder,
                weights=Path(weights) if weights else None,
                image_size=model.image_size,
            )
            network = Network(model, backbone).to(device)
            parts = split_records(selection.records, config)
            require_batch(parts, model, config)
            record = record_data(Path(data), parts, selection.skipped, stop)
            settings = settings_of(model=model, training=config, encoder=backbone.provenance)
            # Without a snapshot nothing can be lost: the run begins anew.
            if resume and snapshots.exist():
                require_same_run(folder, settings, record)
            job = _Job(folder, network, parts, record, config, settings, snapshots, stop, progress)
            _run(job, start, resume)
        _finish(folder, snapshots)
    return folder


def _finish(folder: Path, snapshots: Snapshots) -> None:
    """What may wait until the model is written, so that it can be done again."""
    write_model_card(folder)
    snapshots.remove()


@dataclass(frozen=True, slots=True)
class _Job:
    """What is settled before a run begins or goes on."""

    folder: Path
    network: Network
    parts: Mapping[str, Part]
    record: DataRecord
    config: TrainConfig
    settings: Mapping[str, Any]
    snapshots: Snapshots
    stop: StopRequest
    progress: bool


@contextlib.contextmanager
def _own_folder(folder: Path) -> Iterator[None]:
    """Make the run folder and keep it for this process; a folder that was made in vain goes."""
    made = not folder.exists()
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        with writing_to(folder):
            remove_unfinished(folder)
        try:
            yield
        except BaseException:
            if made:
                with contextlib.suppress(OSError):  # something was written
                    folder.rmdir()
            raise


def _run(job: _Job, start: float, resume: bool) -> None:
    """Train, calibrate and save; from a snapshot where `resume` finds one."""
    network, config, folder = job.network, job.config, job.folder
    snapshot, words = job.snapshots.newest() if resume else (None, [])
    facts = {} if snapshot is None else snapshot.facts
    plan, shapes = plan_features(network, job.parts, config, folder)
    circumstances = _circumstances(network, plan)
    files = [str(path) for path in (*learn_files(job.parts), *held_files(job.parts))]
    held = max(len(part.held) for part in job.parts.values())
    need = training_need(network, plan, config.batch_size, files, held)
    with writing_to(folder):
        require_space(folder, network, plan)
        remove_run(folder)
        write_data(folder, job.record)
        log = RunLog(folder, progress=job.progress, settings=job.settings, resumed=facts.get("log"))
    with log:
        for text in (
            *words,
            *_circumstance_words(snapshot, circumstances),
            plan.reason,
            need.sentence,
        ):
            log.say(text)
        if job.record.skipped:
            log.say(f"{len(job.record.skipped)} files are left out, see {folder / 'data.json'}")
        print_ = job.record.fingerprint()
        sources = encode_files(network, job.parts, plan, shapes, print_, folder, log, job.stop)
        if snapshot is None:
            set_start(network, sources.learn, config)
        keeper = Keeper(
            snapshots=job.snapshots,
            stop=job.stop,
            facts=lambda: {"circumstances": circumstances, "log": log.facts()},
            say=log.say,
            start=snapshot,
        )
        length = _plan(network, sources, config, start, facts.get("plan"), log)
        try:
            steps = fit(network, sources.learn, config, length, log, keeper)
        except TrainingError:
            # Going on would end there again.
            job.snapshots.remove()
            raise
        scorer, held_out = _calibrate(job, sources, log)
        training = {
            "version": __version__,
            "steps": steps,
            "seconds": round(log.seconds, 1),
            "seed": config.seed,
            "images": {name: len(p.learn) for name, p in job.parts.items()},
            "data_sha256": print_,
            "skipped": len(job.record.skipped),
        }
        log.draw()
        require_going(job.stop)
        held_paths = {name: part.held for name, part in job.parts.items()}
        try:
            write_suspects(folder, find_suspects(held_out.classes, held_out.scores, held_paths))
            save_run(folder, network, scorer, _card(network, held_out, job.parts, training))
        except OSError as error:
            raise CheckpointError(
                f"{folder}: the model could not be written ({error.strerror}); free some space, "
                "then the same command with --resume goes on from the last snapshot"
            ) from error
        for text in threshold_words(held_out, held_paths):
            log.say(text)
        log.say(f"done in {log.seconds:.0f} s after {steps} steps: {folder}")


def _circumstances(network: Network, plan: CachePlan) -> dict[str, object]:
    """What may differ between two machines and changes the last bits of a model."""
    config, device = network.config, network.feature_scale.device
    height, width = config.image_size
    lengths = [height // s * (width // s) for s in STAGE_STRIDES[: len(config.dims)]]
    return {
        "device": device.type,
        "scan": backends_in_use(lengths, config.head_dim, config.state_dim, device),
        "native library": "none" if library.why_not() else library.instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "features": "encoded at every step" if plan.mode == "off" else "cached",
    }


def _circumstance_words(snapshot: Snapshot | None, now: Mapping[str, object]) -> Iterator[str]:
    """What people should know about this machine, and about going on from a snapshot."""
    yield f"computing on {now['device']} with {now['threads']} threads, scan: {now['scan']}"
    if snapshot is None:
        return
    yield f"going on after step {snapshot.step}"
    for name, before in snapshot.facts["circumstances"].items():
        if before != now[name]:
            yield (
                f"{name}: {before} before, {now[name]} now; the model will not be the one that an "
                "uninterrupted run would have given, to the last bit"
            )


def _calibrate(job: _Job, sources: Sources, log: RunLog) -> tuple[Scorer, HeldOut]:
    """Fit the scorer and thresholds on held-out images."""
    log.say("calibrating on held-out normal images")
    parts, network = job.parts, job.network
    scorer = make_scorer(network.config, network, len(parts)).to(network.feature_scale.device)
    held = slices(sources.held, [len(p.held) for p in parts.values()])
    learn = slices(sources.learn, [len(p.learn) for p in parts.values()])
    held_out = fit_on_heldout(
        network,
        scorer,
        dict(zip(parts, held, strict=True)),
        dict(zip(parts, learn, strict=True)),
        tick=lambda: require_going(job.stop),
    )
    return scorer, held_out


def _plan(
    network: Network,
    sources: Sources,
    config: TrainConfig,
    start: float,
    before: Mapping[str, float] | None,
    log: RunLog,
) -> Plan:
    """Length of the run; with `minutes`, what features have taken and calibration will is gone.

    before: facts of the plan that a snapshot holds; a resumed run has what was left of it.
    """
    learn, held = sources.learn, sources.held
    if config.minutes is None:
        total = (config.epochs or 1) * steps_per_epoch(len(learn), config.batch_size)
        return StepPlan(total=total)
    now, budget = time.monotonic(), 60 * config.minutes
    if before:
        begin = now - before["used"]
        return TimePlan(start=begin, end=begin + before["length"])
    reserve = calibration_seconds(network, learn, held)
    now = time.monotonic()
    end, least = start + budget - reserve, now + LEAST_SHARE * budget
    if end < least:
        log.say(
            f"minutes: {config.minutes:g} is too short here: features took {now - start:.0f} s and "
            f"calibration needs about {reserve:.0f} s; training {least - now:.0f} s all the same"
        )
    return TimePlan(start=now, end=max(end, least))


def _card(
    network: Network, held_out: HeldOut, parts: Mapping[str, Part], facts: Mapping[str, object]
) -> ModelCard:
    return ModelCard(
        model=network.config,
        encoder=network.encoder.provenance,
        classes=tuple(parts),
        **calibration_fields(held_out.classes, held_out.scores),
        colour_scale=(held_out.colours.low, held_out.colours.high),
        training=dict(facts),
    )
