"""What one check has found, and all of it as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found."""

    name: str
    state: State
    """"problem": a default training or prediction would stop; "note": worth knowing."""
    value: str
    advice: str = ""
    """One sentence on what to do; empty where there is nothing to do."""


def ready(findings: Sequence[Finding]) -> bool:
    """Whether a default training and prediction can run: no finding is a problem."""
    return all(finding.state != "problem" for finding in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """Findings as an aligned list with the advice under what it is about, and a last line."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.state:7}  {finding.name:{width}}  {finding.value}".rstrip())
        if finding.advice:
            lines.append(" " * (width + 11) + f"-> {finding.advice}")
    problems = sum(finding.state == "problem" for finding in findings)
    verdict = "Ready: a default training and prediction can run here."
    if problems:
        verdict = f"Not ready: {problems} problem{'s' if problems > 1 else ''}, see above."
    # A terminal without UTF-8 must not be what stops a doctor.
    text = "\n".join([*lines, "", verdict])
    return text.encode("ascii", "backslashreplace").decode("ascii")


def as_json(findings: Sequence[Finding]) -> str:
    """Findings as JSON: "ready", and "findings" with name, state, value and advice of each."""
    content = {"ready": ready(findings), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2)


def short(error: BaseException) -> str:
    """An exception as one line of limited length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
