"""From images to pieces: scores of multi-view data sets, where several images show one piece."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mambaadv2.data.record import Record

Piece = TypeVar("Piece", bound=Hashable)


def by_sample(
    records: Sequence[Record], scores: Sequence[float] | NDArray[np.floating]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return labels (S,) bool and scores (S,) of S pieces, in the order of their first images.

    records: N of one class, each with a `sample`. scores: N, any unit. A piece is defect when one
    of its views is, and its score is the highest of its views': the sample level of Real-IAD (Wang
    et al., CVPR 2024; ADer, data/ad_dataset.py, has the same rule for the labels).

    Raises `ValueError` for a record without a sample and for another number of scores.

    >>> from pathlib import Path
    >>> def view(name, label):
    ...     return Record(path=Path(name), class_name="usb", split="test", defect=label != "good",
    ...                   defect_type=label, sample=name[:2])
    >>> by_sample([view("S1C1", "good"), view("S1C2", "pit"), view("S2C1", "good")], [3, 5, 4])
    (array([ True, False]), array([5., 4.]))
    """
    if len(scores) != len(records):
        raise ValueError(f"scores: expected {len(records)} scores, got {len(scores)}")
    for record in records:
        if record.sample is None:
            raise ValueError(f"{record.path}: expected a record with a sample, found none")
    pieces = worst_views(
        ((record.class_name, record.sample), record.defect, float(score))
        for record, score in zip(records, scores, strict=True)
    ).values()
    labels = np.array([defect for defect, _ in pieces], np.bool_)
    return labels, np.array([score for _, score in pieces])


def worst_views(views: Iterable[tuple[Piece, bool, float]]) -> dict[Piece, tuple[bool, float]]:
    """Whether each piece is a defect, and its score, in the order of the first views.

    views: piece, whether the view shows a defect, score. The rule is that of `by_sample`.
    """
    pieces: dict[Piece, tuple[bool, float]] = {}
    for piece, defect, score in views:
        known, highest = pieces.get(piece, (False, -math.inf))
        pieces[piece] = (known or defect, max(highest, score))
    return pieces
