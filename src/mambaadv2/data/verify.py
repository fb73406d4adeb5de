"""Before any work: every file of a data set is opened, and those that cannot be used are named."""

from __future__ import annotations

import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mambaadv2.data.index import list_records
from mambaadv2.data.record import Listing, Record, Split
from mambaadv2.errors import BadFilesError, DataError, ImageError, Problem, WorkerError
from mambaadv2.image import read_image, read_mask
from mambaadv2.readers import Readers, readers_for

OnError = Literal["stop", "skip"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a data set can be used."""

    records: tuple[Record, ...]
    """Of classes that have at least one; sorted as in a `Listing`."""
    skipped: tuple[Problem, ...]
    """What was left out and why, in the data set's order; empty after "stop"."""
    layout: str = ""
    """As in `Listing`, like `reason` and `notes`."""
    reason: str = ""
    notes: tuple[str, ...] = ()


def usable_records(
    data: str | os.PathLike[str],
    *,
    split: Split,
    classes: Sequence[str] | None = None,
    on_error: OnError = "stop",
    layout: str | None = None,
    progress: bool = True,
) -> Selection:
    """List a data set as `list_records` and decode every image and mask once, to see if it can be.

    A file is left out when it is missing, cannot be opened or decoded, or is too large, and an
    image as well when its mask is, or has another size than the image. A class with nothing usable
    left is left out, and its folder (or the manifest) is among what was skipped.

    on_error: "stop" raises `BadFilesError` with the complete list of problems, if there are any;
    "skip" goes on with the rest.
    layout: a name, as in `list_records`; None recognises it.
    progress: say on stderr what layout it is and why, and show a bar when that is a terminal.

    One image per thread is in memory at a time. Raises `DataError` as `list_records` does, and
    when nothing is left at all.
    """
    if on_error not in ("stop", "skip"):
        raise DataError(f'on_error: expected "stop" or "skip", got {on_error!r}')
    listing = list_records(data, split=split, classes=classes, layout=layout)
    if progress:
        for line in (f"data: layout {listing.layout} ({listing.reason})", *listing.notes):
            tqdm.write(line, file=sys.stderr)
    usable: list[Record] = []
    problems = list(listing.problems)
    # Elsewhere than in this process: what ends a decoder must not end the command.
    with Readers(readers_for(len(listing.records))) as readers:
        judge = functools.partial(_problem, readers)
        answers = in_threads(judge, listing.records, label="checking images", progress=progress)
        for record, problem in zip(listing.records, answers, strict=True):
            if problem is None:
                usable.append(record)
            else:
                problems.append(problem)
    if problems and on_error == "stop":
        raise BadFilesError(_sorted(problems, listing))
    problems += _lost_classes(listing, usable, split)
    problems = _sorted(problems, listing)
    if not usable:
        lines = "\n".join(f"  {problem.message}" for problem in problems)
        raise DataError(f"{data}: nothing is left to use:\n{lines}")
    return Selection(tuple(usable), tuple(problems), listing.layout, listing.reason, listing.notes)


def read_record(
    record: Record,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None] | Problem:
    """Decode an image, (H, W, 3) uint8, and its mask, (H, W) bool or None where there is none.

    A `Problem` with the file's name when one of them cannot be read, or the mask has another size.
    """
    at = record.path
    try:
        image = read_image(at)
        union: NDArray[np.bool_] | None = None
        for at in record.masks:
            mask = _read_mask(at, record.mask_background)
            if (problem := _other_size(record, at, image.shape, mask.shape)) is not None:
                return problem
            union = mask if union is None else union | mask
    except ImageError as error:
        return Problem(at, str(error))
    return image, union


def read_masks(record: Record) -> NDArray[np.bool_] | None:
    """Decode the ground truth of one image: the union of its masks, (H, W) bool, None without any.

    Raises `ImageError`, naming the file, for one that cannot be read or has another size than the
    first.
    """
    union: NDArray[np.bool_] | None = None
    for at in record.masks:
        mask = _read_mask(at, record.mask_background)
        if union is not None and union.shape != mask.shape:
            raise ImageError(
                f"{at}: expected the size of the image's other masks, {_size(union.shape)}, found "
                f"{_size(mask.shape)}; draw all of them on the image {record.path}"
            )
        union = mask if union is None else union | mask
    return union


def _read_mask(path: Path, background: str | None) -> NDArray[np.bool_]:
    """(H, W) bool, True where a pixel has another colour than the background, black by default."""
    if background is None:
        return read_mask(path)
    colour = np.frombuffer(bytes.fromhex(background.removeprefix("#")), np.uint8)
    marked: NDArray[np.bool_] = np.any(read_image(path) != colour, axis=2)
    return marked


def _other_size(
    record: Record, at: Path, image: Sequence[int], mask: Sequence[int]
) -> Problem | None:
    """The problem of a mask whose height and width are not its image's."""
    if tuple(mask[:2]) == tuple(image[:2]):
        return None
    return Problem(
        at,
        f"{at}: expected the size of its image {record.path}, {_size(image)}, found "
        f"{_size(mask)}; draw the mask on its image, or remove both",
    )


def in_threads(
    function: Callable[[Item], Answer], items: Sequence[Item], *, label: str, progress: bool
) -> Iterator[Answer]:
    """Yield `function(item)` in the order of `items`, computed in as many threads as cores.

    Only few are computed ahead, so memory does not grow with the number of items. What the
    function raises is raised here. An interruption is raised at once and starts nothing more.
    """
    workers = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="check")
    ahead: deque[Future[Answer]] = deque()
    # disable=None: shown on a terminal only.
    with tqdm(
        total=len(items), desc=label, unit="image", disable=None if progress else True
    ) as bar:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
                    bar.update()
            while ahead:
                yield ahead.popleft().result()
                bar.update()
        finally:
            # Not waited for: after an interruption at most one image per thread is still read.
            pool.shutdown(wait=False, cancel_futures=True)


def _problem(readers: Readers, record: Record) -> Problem | None:
    """What is wrong with an image or its mask, where something is."""
    at = record.path
    try:
        image = readers.size(at).result()
        for at in record.masks:
            mask = readers.size(at, mask=record.mask_background is None).result()
            problem = _other_size(record, at, image.tolist(), mask.tolist())
            if problem is not None:
                return problem
    except (ImageError, WorkerError) as error:
        return Problem(at, str(error))
    return None


def _lost_classes(listing: Listing, usable: Sequence[Record], split: Split) -> list[Problem]:
    kept = {record.class_name for record in usable}
    aim = {"train": "train on", "test": "test"}.get(split, "use")
    return [
        Problem(path, f"{path}: class {name!r} has no usable image left to {aim}, and is left out")
        for name, path in listing.classes.items()
        if name not in kept
    ]


def _sorted(problems: Sequence[Problem], listing: Listing) -> list[Problem]:
    """By path, so that a class's problems stand together; a manifest's in its own order."""
    if any(path.is_file() for path in listing.classes.values()):
        return list(problems)
    return sorted(problems, key=lambda problem: problem.path)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
