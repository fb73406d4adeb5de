"""Going on with a run: what it was, whether it is the same, and where it stands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambaadv2.checkpoint import read_card
from mambaadv2.errors import CheckpointError, ConfigError
from mambaadv2.files import write_atomically
from mambaadv2.prepare import DataRecord
from mambaadv2.snapshot import FOLDER, Snapshots

CONFIG, DATA = "config.json", "data.json"
# Where features lie and how often is saved changes no bit of the model.
_FREE = ("training.cache", "training.save_seconds")
_MOST_FILES = 10


def require_nothing_unfinished(folder: Path, snapshots: Snapshots) -> None:
    """Refuse to begin anew where an unfinished run would be lost."""
    if snapshots.exist():
        raise ConfigError(
            f"out: {folder} holds an unfinished run; go on with it by --resume, remove "
            f"{folder / FOLDER} to give it up, or choose another folder"
        )


def require_same_run(
    folder: Path, settings: Mapping[str, Any], data: DataRecord | None = None
) -> None:
    """Compare configuration and, where given, data with those that the run was begun with.

    settings: parts of config.json; what is absent is not compared. Raises `CheckpointError` with a
    line for every field and file that differs.
    """
    recorded = _read(folder / CONFIG)
    lines = differences({name: recorded.get(name) for name in settings}, settings)
    lines = [line for line in lines if line.split(":")[0] not in _FREE]
    if data is not None:
        lines += _data_differences(_read(folder / DATA), data)
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise CheckpointError(
            f"{folder}: cannot be resumed, this is not the run that was begun there:\n{listed}\n"
            "Repeat the command as it was, on the same data, or choose another folder"
        )


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each field that two configurations (JSON values) do not share."""
    lines: list[str] = []
    for name in dict.fromkeys((*recorded, *now)):
        old, new = recorded.get(name, "nothing"), now.get(name, "nothing")
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old!r} in the run, {new!r} now")
    return lines


def _data_differences(recorded: Mapping[str, Any], data: DataRecord) -> list[str]:
    lines: list[str] = []
    now = json.loads(json.dumps(dataclasses.asdict(data)))
    for part in ("learn", "held"):
        before = recorded.get(part, {})
        for name in dict.fromkeys((*before, *now[part])):
            lines += _file_differences(
                f"data.{part}.{name}", before.get(name, {}), now[part].get(name, {})
            )
    return lines


def _file_differences(where: str, recorded: dict[str, str], now: dict[str, str]) -> list[str]:
    """One line for each file that is gone, new or of another content; also for another order."""
    gone = [f"{name} is gone" for name in recorded if name not in now]
    new = [f"{name} is new" for name in now if name not in recorded]
    changed = [f"{n} has changed" for n in recorded if n in now and recorded[n] != now[n]]
    found = gone + new + changed
    if not found and list(recorded) != list(now):
        found = ["the files are in another order"]
    more = len(found) - _MOST_FILES
    if more > 0:
        found = [*found[:_MOST_FILES], f"and {more} more"]
    return [f"{where}: {text}" for text in found]


def is_finished(folder: Path) -> bool:
    """Whether the run's model is written; a description that cannot be read is none."""
    try:
        read_card(folder)
    except CheckpointError:
        return False
    return True


def write_data(folder: Path, data: DataRecord) -> None:
    """Write data.json."""
    text = json.dumps(dataclasses.asdict(data), indent=1)
    write_atomically(folder / DATA, (text + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}), so the run cannot be compared and resumed; "
            "choose another folder"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
