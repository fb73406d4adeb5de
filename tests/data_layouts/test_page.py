"""docs/datasets.md: it covers every layout, and what it says of published numbers is marked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from mambaadv2.cli import build_parser
from mambaadv2.data.layouts import LAYOUTS

PAGE = (Path(__file__).resolve().parents[2] / "docs/datasets.md").read_text(encoding="utf-8")


def test_every_layout_has_a_row_with_its_page() -> None:
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|.*$", PAGE, flags=re.MULTILINE)
    named = [name for cell, _ in rows for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted(LAYOUTS)


def test_the_recipes_are_commands_of_this_version() -> None:
    recipes = PAGE[PAGE.index("## Recipes") :]
    assert "**Not yet reproduced here:**" in recipes
    assert recipes.count("### ") == 6
    commands = re.findall(r"^ *(mambaadv2 .*)$", recipes, flags=re.MULTILINE)
    assert len(commands) == 24
    for command in commands:
        arguments = build_parser().parse_args(shlex.split(command)[1:])
        assert getattr(arguments, "layout", None) is None
        assert getattr(arguments, "protocol", "ader") in ("ader", None)
