"""Predictions for files: read ahead, scored in batches, written to a folder."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mambaadv2.checkpoint import ModelCard, read_card
from mambaadv2.data.index import IMAGE_SUFFIXES
from mambaadv2.errors import ConfigError, DataError, ImageError, WorkerError
from mambaadv2.files import locked, remove_unfinished, writing_to
from mambaadv2.predict_folder import LEGEND, LINES, OVERLAYS, PredictionFolder, still_to_do
from mambaadv2.predictor import (
    ImageModel,
    NotFiniteMapError,
    Prediction,
    Predictor,
    RgbImage,
    load,
)
from mambaadv2.readers import WORTH_A_PROCESS, Readers, readers_for
from mambaadv2.rehearsal import prediction_plan
from mambaadv2.signals import StopRequest, stop_on_signal
from mambaadv2.summary import Watching, require_fdr, write_summary

__all__ = [
    "ImageModel",
    "Prediction",
    "Predictor",
    "RgbImage",
    "find_images",
    "load",
    "predict_paths",
    "predict_to_folder",
]

DEATHS = 3
"""Readers that die in a row, none reading an image between, before it is the machine's fault."""

Outcome = tuple[Path, RgbImage | None, Prediction | ImageError | WorkerError, float]
"""Path, image (None where it could not be read), what was found, milliseconds."""


def predict_paths(
    predictor: ImageModel, paths: Iterable[Path], *, batch_size: int = 8
) -> Iterator[tuple[Path, RgbImage, Prediction, float]]:
    """Yield (path, image, prediction, milliseconds) for every path, in order.

    Milliseconds are the batch's time in the predictor divided by its size, decoding not counted.
    Memory stays constant: one batch is read ahead. Raises `ImageError` at an unreadable file and
    `WorkerError` at one whose reading process died.
    """
    count = len(paths) if isinstance(paths, Sized) else WORTH_A_PROCESS
    with Readers(readers_for(count)) as readers:
        for batch in _predict_batches(predictor, paths, batch_size, readers):
            for path, image, outcome, ms in batch:
                if not isinstance(outcome, Prediction):
                    raise outcome
                assert image is not None
                yield path, image, outcome, ms
            batch.clear()


def _predict_batches(
    predictor: ImageModel, paths: Iterable[Path], batch_size: int, readers: Readers
) -> Iterator[list[Outcome]]:
    """Yield the outcomes of one batch after the other; an image without prediction has its error.

    Raises `WorkerError` when `DEATHS` readers in a row have died: the images they were reading get
    no outcome, as far as they are in one batch.
    """
    remaining = iter(paths)
    deaths = 0
    following = [(path, readers.image(path)) for path in islice(remaining, batch_size)]
    while following:
        current = following
        following = [(path, readers.image(path)) for path in islice(remaining, batch_size)]
        read: list[tuple[Path, RgbImage | ImageError | WorkerError]] = []
        fatal = None
        for path, future in current:
            try:
                read.append((path, future.result()))
                deaths = 0
            except ImageError as error:
                read.append((path, error))
                deaths = 0
            except WorkerError as error:
                read.append((path, error))
                deaths += 1
                if deaths == DEATHS:
                    fatal = error
                    break
        if fatal is not None:
            read = read[: max(0, len(read) - DEATHS)]
        current.clear()
        yield _outcomes(predictor, read)
        if fatal is not None:
            raise fatal
        read.clear()  # before the next batch but one is asked for


def _outcomes(
    predictor: ImageModel, read: Sequence[tuple[Path, RgbImage | ImageError | WorkerError]]
) -> list[Outcome]:
    """Predict what could be read of a batch."""
    images = [(path, image) for path, image in read if not isinstance(image, Exception)]
    start = time.perf_counter()
    try:
        predictions = iter(predictor.predict([image for _, image in images]))
    except NotFiniteMapError as error:
        raise NotFiniteMapError(error.index, str(images[error.index][0])) from None
    ms = (time.perf_counter() - start) * 1e3 / max(1, len(images))
    return [
        (path, None, image, 0.0)
        if isinstance(image, ImageError | WorkerError)
        else (path, image, next(predictions), ms)
        for path, image in read
    ]


def find_images(inputs: Sequence[str], *, exclude: Sequence[Path] = ()) -> Iterator[Path]:
    """Image files behind files, folders (searched to the bottom) and glob patterns, sorted.

    A pattern may match files and folders; an image that it reaches twice counts once. Hidden files
    and folders inside a folder are left out, and so is what folders and patterns find at or inside
    `exclude`, resolved paths. Raises `DataError` when an input gives no image.
    """
    for text in inputs:
        if Path(text).is_file():
            yield Path(text)
            continue
        # A name with brackets may be an existing folder and no pattern.
        matches = [text] if Path(text).is_dir() else sorted(glob.glob(text, recursive=True))
        found = dict.fromkeys(path for match in matches for path in _images_at(Path(match)))
        if exclude:
            found = {p: None for p in found if not any(map(p.resolve().is_relative_to, exclude))}
        if not found:
            raise DataError(
                f"{text}: expected an image, a folder with images or a pattern; found no image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        yield from found


def _images_at(path: Path) -> list[Path]:
    """The file itself, or the images in a folder."""
    return [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if _is_image(p, path)]


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def predict_to_folder(
    run: str | os.PathLike[str],
    inputs: Sequence[str],
    out: str | os.PathLike[str],
    *,
    raw: bool = False,
    min_area: int = 1,
    watch: bool = False,
    fdr: float | None = None,
    resume: bool = False,
    device: str = "auto",
    batch_size: int = 8,
    progress: bool = True,
) -> int:
    """Score images and write `predictions.jsonl`, `overlays/*.png` and, if `raw`, `maps/*.npy`.

    A line has path, score, p_value, threshold, threshold_kind, defect, class, width, height, ms,
    n_regions, regions (the highest `MOST_REGIONS`), overlay and, if `raw`, map, the last two
    relative to `out`; or path and error for an image that cannot be read; the others go on. Returns
    the number of error lines. All heat maps share the model's colour scale, which
    `scale.png` explains. Pictures of an earlier call that lie inside an input are not
    taken for images. `summary.json` is written at the end.

    min_area: pixels that a region has at least; the decision does not depend on it. watch: look for
    a change in the stream, by the lines' order, and say it on stderr and in `summary.json`. fdr:
    wished share of good images among those that the whole batch's p-values call defects, in (0, 1),
    for `summary.json`.

    resume: keep the lines that are there and add those that are missing; otherwise begin anew. The
    lines must be of the same model, `raw` and `min_area` (`predict.json` says), else `ConfigError`.
    Begins where there is nothing to go on with. The returned number counts errors of earlier lines
    too, and the watch has seen them.

    The memory it needs is stated on stderr before the work and held; where it is not free, the
    batch is made smaller, and `ConfigError` raised when one image is too much. `RunBusyError` when
    another process writes to `out`, `WorkerError` when processes that read die one after the other.

    SIGINT and SIGTERM end the work at a whole line, with `KeyboardInterrupt` and with `SystemExit`
    of code 143; the second one ends the process at once.
    """
    if min_area < 1:
        raise ConfigError(f"min_area: expected 1 pixel or more, got {min_area}")
    predictor = load(run, device=device)
    require_fdr(predictor.card, fdr)
    folder = Path(out)
    own = [(folder / name).resolve() for name in (OVERLAYS, LEGEND)]
    # As text: a path object takes three times as much.
    paths = [str(path) for path in find_images(inputs, exclude=own)]
    ask = _Ask(min_area, fdr, progress, Watching(predictor.card) if watch else None)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        with writing_to(folder):
            remove_unfinished(folder)
        made_by = _made_by(run, predictor, raw, min_area)
        results = PredictionFolder(folder, made_by, raw=raw, resume=resume, each=ask.take)
        try:
            _predict_all(predictor, paths, results, batch_size, ask)
        finally:
            results.close()
    return results.errors


@dataclass(frozen=True, slots=True)
class _Ask:
    """What of a call goes down to where lines are written. progress: say things on stderr."""

    min_area: int
    fdr: float | None
    progress: bool
    watching: Watching | None

    def say(self, text: str) -> None:
        if self.progress:
            tqdm.write(text, file=sys.stderr)

    def take(self, line: Mapping[str, Any]) -> None:
        """Show a line that is on the disk to the watch, if there is one."""
        if self.watching is not None:
            self.watching.add(line)

    def say_news(self) -> None:
        """Say what the watch has found since; what it cries is said once."""
        for text in () if self.watching is None else self.watching.news():
            self.say(text)


def _made_by(
    run: str | os.PathLike[str], predictor: Predictor, raw: bool, min_area: int
) -> dict[str, object]:
    """What lines depend on; the batch's size and the device change no more than last digits."""
    card, weights = read_card(Path(run))
    return {
        "weights_sha256": weights,
        "thresholds": card.thresholds,
        "threshold_rules": {name: card.threshold_sentence(name) for name in card.classes},
        "held_out_sha256": _held_out_sha256(card),
        "colour_scale": card.colour_scale,
        "colour_marks": {name: predictor.colour_marks(name) for name in card.classes},
        "min_area": min_area,
        "raw": raw,
    }


def _held_out_sha256(card: ModelCard) -> str:
    """Over the scores that p-values rank among."""
    scores = {name: card.kept_scores(name) for name in card.classes}
    return hashlib.sha256(json.dumps(scores).encode()).hexdigest()


def _predict_all(
    predictor: Predictor,
    paths: Sequence[str],
    results: PredictionFolder,
    batch_size: int,
    ask: _Ask,
) -> None:
    """Write the lines that are missing and what they say together."""
    if results.finished:
        ask.say(f"{results.finished} of {len(paths)} images were finished before")
    marks = {name: predictor.colour_marks(name) for name in predictor.classes}
    results.draw_legend(predictor.colour_scale, marks)
    if ask.watching is not None:
        ask.say(ask.watching.opening())
        ask.say_news()
    _predict_rest(predictor, paths, results, batch_size, ask)
    with _kept(results, results.finished):
        lines, card = results.folder / LINES, predictor.card
        sentences = write_summary(lines, card, fdr=ask.fdr, watching=ask.watching)
    for sentence in sentences:
        ask.say(sentence)
    counts = f"{results.defects} with a defect, {results.errors} could not be read"
    ask.say(f"{results.finished} images: {counts}; results in {results.folder}")


def _predict_rest(
    predictor: Predictor,
    paths: Sequence[str],
    results: PredictionFolder,
    batch_size: int,
    ask: _Ask,
) -> None:
    """Write the lines that are missing."""
    todo, repeated = still_to_do(paths, results.earlier, batch_size)
    if not todo:
        return
    plan = prediction_plan(predictor, todo, batch_size)
    ask.say(plan.sentence)
    if plan.batch_size != batch_size:
        todo, repeated = still_to_do(paths, results.earlier, plan.batch_size)
    total = results.finished + len(todo) - repeated
    bar = tqdm(
        total=total, initial=results.finished, unit="image", desc="predict",
        disable=None if ask.progress else True,
    )  # fmt: skip
    with stop_on_signal() as request, bar, Readers(plan.readers) as readers:
        try:
            for batch in _predict_batches(predictor, map(Path, todo), plan.batch_size, readers):
                again = min(repeated, len(batch))
                repeated -= again
                with _kept(results, total):
                    _write(batch[again:], results, predictor, request, bar, ask)
                batch.clear()
                if request.signal is not None:
                    break
        except WorkerError as error:
            raise WorkerError(f"{error}; {_how_far(results, total)}") from error
    if request.signal is not None and results.finished < total:
        ask.say(f"stopped by {request.name}: {_how_far(results, total)}")
        if request.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + request.signal)


def _write(
    batch: Sequence[Outcome],
    results: PredictionFolder,
    predictor: Predictor,
    request: StopRequest,
    bar: tqdm,
    ask: _Ask,
) -> None:
    """Write pictures and lines of a batch; on a request to stop, only those of its first images."""
    for path, image, outcome, ms in batch:
        if request.signal is not None:
            break
        if isinstance(outcome, Prediction):
            assert image is not None
            places = predictor.regions(outcome, min_area=ask.min_area)
            results.add(path, image, outcome, places, ms, predictor.colour_scale)
        else:
            results.add_error(path, outcome)
            ask.say(str(outcome))
        bar.update()
    results.commit()
    ask.say_news()


@contextlib.contextmanager
def _kept(results: PredictionFolder, total: int) -> Iterator[None]:
    """When writing fails, keep the lines that are whole and say how to go on."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            results.commit()
        raise ConfigError(
            f"out: cannot write to {results.folder} ({error.strerror}); "
            f"mend that, then go on: {_how_far(results, total)}"
        ) from error


def _how_far(results: PredictionFolder, total: int) -> str:
    return f"{results.finished} of {total} lines are finished, --resume adds the others"
