"""What a report says beside the numbers: how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Plain texts and numbers; all texts are escaped when they are shown."""

    title: str
    command: str
    """What made the page, as typed."""
    time: str
    """When it was made, with the time zone."""
    tables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Heading to name to value, for example the environment of the training."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Of the classes that the model knows, raw score units."""
    held_out: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Per class, raw scores of the good images among which p-values rank; may lack any."""
    held_out_images: Mapping[str, int] = field(default_factory=dict)
    """Their number, known even where the scores are not, and with those left out."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Per class, held-out images that look mislabelled; thresholds and p-values are without."""
    promises: Mapping[str, str] = field(default_factory=dict)
    """Per class, what made its threshold and what that promises, as whole sentences."""
    colour_marks: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Per class, (map / threshold, p-value) that the scale of heat colours may say; p falls."""
    against: str = "the other run"
    """What the page calls the evaluation that it is compared with."""
    loss: Sequence[tuple[float, float]] = ()
    """(epoch, training loss)."""
    colour_range: tuple[float, float] = (0.5, 2.0)
    """Where the heat colours begin and end, in multiples of the threshold."""

    @property
    def ranked_among(self) -> dict[str, int]:
        """Per class, the number of held-out images among which p-values rank."""
        return {name: len(scores) for name, scores in self.held_out.items()}
