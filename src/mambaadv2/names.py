"""Names as messages show them: in one line, and with the known one that comes closest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(name: str) -> str:
    """Return a file's or class's name as one line of text, whatever bytes it is made of."""
    return name if name.isprintable() else repr(name)[1:-1]


def did_you_mean(name: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return " (did you mean 'x'?)" with the known name x nearest to this one, or nothing.

    cutoff: how alike they are at least, 0..1, as of `difflib.get_close_matches`.

    >>> did_you_mean("visas", ["mvtec", "visa"]), did_you_mean("x", ["visa"])
    (" (did you mean 'visa'?)", '')
    """
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]!r}?)" if close else ""
