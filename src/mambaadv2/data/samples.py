"""From images to pieces: scores of multi-view data sets, where several images show one piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mambaadv2.data.record import Record


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
    labels: dict[tuple[str, str], bool] = {}
    worst: dict[tuple[str, str], float] = {}
    for record, score in zip(records, scores, strict=True):
        if record.sample is None:
            raise ValueError(f"{record.path}: expected a record with a sample, found none")
        piece = (record.class_name, record.sample)
        labels[piece] = labels.get(piece, False) or record.defect
        worst[piece] = max(worst.get(piece, -np.inf), float(score))
    return np.array(list(labels.values()), np.bool_), np.array(list(worst.values()))
