"""Text and tables that Markdown shows as they are, whatever they hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

_PLAIN = re.compile(r"(?!www\b)[A-Za-z0-9]+(?:[_.+ -][A-Za-z0-9]+)*", re.IGNORECASE)


def escape(text: object) -> str:
    r"""Text that Markdown shows as it is, in a line or a table's cell, whatever it holds.

    Characters that cannot be seen, line ends among them, are shown as their code in Python, and so
    is the backslash: no two texts are shown alike.

    >>> escape("screw_a"), escape("a|b"), escape("two\nlines")
    ('screw_a', 'a\\|b', 'two\\\\nlines')
    """
    # What is unseen or turns the direction of writing: controls, formats, separators, surrogates.
    seen = "".join(
        c if c == " " or (unicodedata.category(c)[0] not in "CZ" and c != "\\") else ascii(c)[1:-1]
        for c in str(text)
    )
    seen = re.sub(r"^ | $|(?<= ) ", r"\\x20", seen)  # spaces that Markdown would drop
    return seen if _PLAIN.fullmatch(seen) else re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", seen)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table; the cells must be escaped already."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
