"""The installed packages that this one needs, and whether their versions fit together.

All of it is read from the packages' own metadata: nothing is imported, nothing is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


@dataclass(slots=True)
class Package:
    """One package that is needed here, by this one or by another that it needs."""

    name: str
    """As on the package index: lower case, hyphens."""
    version: str | None
    """The installed version; None where it is not installed."""
    wanted: dict[str, str] = field(default_factory=dict)
    """The range that each package wants, by the name of who wants it; "" where any version does."""

    @property
    def misfits(self) -> tuple[str, ...]:
        """Who wants another version than the one that is installed."""
        return tuple(by for by, wanted in self.wanted.items() if not self._fits(wanted))

    def _fits(self, wanted: str) -> bool:
        if self.version is None:
            return False
        try:
            return SpecifierSet(wanted).contains(Version(self.version), prereleases=True)
        except InvalidVersion:
            return False


def needed_packages(root: str, *, extras: Sequence[str] = ()) -> dict[str, Package]:
    """Every package that the installed package `root` needs to run, and what those need, by name.

    extras: of `root`, to count as well. Raises `importlib.metadata.PackageNotFoundError` where
    `root` is not installed.
    """
    packages: dict[str, Package] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [(root, tuple(extras))]
    metadata.distribution(root)
    while waiting:
        name, chosen = waiting.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        for requirement in _requirements(name, chosen):
            other = canonicalize_name(requirement.name)
            package = packages.setdefault(other, Package(other, _version(other)))
            wanted = (package.wanted.get(name), str(requirement.specifier))
            package.wanted[name] = ",".join(dict.fromkeys(filter(None, wanted)))
            waiting.append((other, tuple(sorted(requirement.extras))))
    packages.pop(canonicalize_name(root), None)
    return dict(sorted(packages.items()))


def metadata_folder(name: str) -> Path:
    """Folder of an installed package's metadata, `.../site-packages/NAME-VERSION.dist-info`."""
    distribution = metadata.distribution(name)
    for file in distribution.files or ():
        if file.name == "METADATA":
            return Path(str(distribution.locate_file(file))).parent
    raise FileNotFoundError(f"{name}: its installation lists no METADATA")


def _requirements(name: str, extras: tuple[str, ...]) -> Iterator[Requirement]:
    try:
        lines = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
