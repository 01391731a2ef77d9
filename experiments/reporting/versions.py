"""Which cells of a table were computed by the same code.

summary.json says which code each session of a run used (`fedta_app.runs.provenance`): the sha256 of
all of it and, since runs record them, the sha256 of each part that the run used. Two runs are of
one version when all their code is the same, or every part that both used.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.running.cells import Cell
from fedta_app.runs.provenance import code_facts, uncommitted
from fedta_app.runs.records import read_summary

Code = Mapping[str, Any]  # the entry "code" of a summary, or of one of its sessions


@dataclass
class Version:
    """Code that computes the same.

    Attributes
    ----------
    parts : dict of str to str
        The sha256 of each part that is known.
    hashes : set of str
        The sha256 of all code, which may differ in what no run used.
    commits, names : set of str
        Of these commits, in full and as `commit_name` writes them.
    """

    parts: dict[str, str] = field(default_factory=dict)
    hashes: set[str] = field(default_factory=set)
    commits: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)

    def agrees(self, other: "Version") -> bool:
        """Return whether the parts that both know are the same, shared code among them."""
        common = self.parts.keys() & other.parts.keys()
        return bool(common) and all(self.parts[part] == other.parts[part] for part in common)

    def is_same(self, other: "Version") -> bool:
        """Return whether all code, or every part that both know, is the same."""
        return bool(self.hashes & other.hashes) or self.agrees(other)

    def differs_in(self, other: "Version") -> list[str]:
        """Return the parts that differ, as far as both know them."""
        return sorted(
            part
            for part in self.parts.keys() & other.parts.keys()
            if self.parts[part] != other.parts[part]
        )

    def add(self, other: "Version") -> None:
        """Take in what another piece of code, which is of this version, says."""
        self.parts |= other.parts
        self.hashes |= other.hashes
        self.commits |= other.commits
        self.names |= other.names

    @property
    def name(self) -> str:
        """The commits as `commit_name` writes them."""
        return " or ".join(sorted(self.names))


def commit_name(code: Code) -> str:
    """Return the first eight digits of a commit, and whether the code was as committed."""
    return str(code["commit"])[:8] + (" with changes" if code.get("changed") else "")


def codes_of(summary: Mapping[str, Any]) -> list[Code]:
    """Return what every session of a run says of its code; old summaries know of the last only."""
    sessions = [session["code"] for session in summary["sessions"] if "code" in session]
    return [*sessions, summary["code"]]


def code_versions(codes: Iterable[Code]) -> list[Version]:
    """Return the versions among the codes, in the order in which they come."""
    by_hash: dict[str, Version] = {}
    for code in codes:
        parts, commit = dict(code.get("parts", {})), str(code["commit"])
        piece = Version(parts, {code["sha256"]}, {commit}, {commit_name(code)})
        by_hash.setdefault(code["sha256"], Version()).add(piece)
    found: list[Version] = []
    for piece in by_hash.values():
        if same := next((version for version in found if version.agrees(piece)), None):
            same.add(piece)
        else:
            found.append(piece)
    return found


def cells_by_version(
    versions: Sequence[Version], cells: Iterable[tuple[str, Mapping[str, Any]]]
) -> list[list[str]]:
    """Return the names of the cells of each version; a cell of several sessions may be in several.

    Parameters
    ----------
    cells : iterable of (str, mapping)
        Names and summaries.
    """
    names: list[list[str]] = [[] for _ in versions]
    for name, summary in cells:
        hashes = {code["sha256"] for code in codes_of(summary)}
        for version, those in zip(versions, names, strict=True):
            if hashes & version.hashes:
                those.append(name)
    return names


def some(names: Sequence[str]) -> str:
    """Return the first of the names, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def code_warnings(cells: Sequence[Cell], results: Path) -> list[str]:
    """Return what is to be said of the code before these cells are run.

    Parameters
    ----------
    results : Path
        Where the tables' records are.
    """
    codes = _codes_now(cells)
    (now,) = code_versions(codes)  # one source tree
    changed = sorted({path for code in codes for path in code.get("changed", ())})
    warnings = [uncommitted({"changed": changed})] if changed else []
    own = {cell.label for cell in cells}
    names, commits, places, parts = [], set(), set(), set()
    for name, (summary, place) in _other_cells(cells, results).items():
        theirs = [v for v in code_versions(codes_of(summary)) if not now.is_same(v)]
        if name not in own and theirs:
            names.append(name)
            places.add(str(place))
            commits |= {version.name for version in theirs}
            parts |= {part for version in theirs for part in now.differs_in(version)}
    if names:
        differing = f", in {', '.join(sorted(parts))}" if parts else ""
        warnings.append(
            f"{some(names)}, in {' and '.join(sorted(places))}, ran with other code than this "
            f"(commit {', '.join(sorted(commits))}{differing}): a report of them and of what runs "
            "now says so in its caption; `collect --out DIR` keeps yours apart"
        )
    return warnings


def _codes_now(cells: Sequence[Cell]) -> list[Code]:
    """Return what the runs of the cells would say of their code."""
    found: dict[tuple[Any, ...], Code] = {}
    for cell in cells:
        config = cell.config
        units = (config.mask_rule, config.strategy, config.dataset, config.model)
        key = (*units, config.engine == "centralized")
        if key not in found:
            found[key] = code_facts(config)
    return list(found.values())


def _other_cells(cells: Sequence[Cell], results: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """Return the summaries of the finished runs and records of the cells' tables, by name."""
    found = {}
    for table in sorted({cell.preset.table for cell in cells if cell.own_name}):
        for place, cells_of in ((results, f"{table}/cells"), (cells[0].results, table)):
            for path in sorted((place / cells_of).glob("*/seed*/summary.json")):
                summary = read_summary(path.parent)
                seed = path.parent.name.removeprefix("seed")
                if summary.get("status") == "finished" and seed.isdecimal():
                    name = f"{table}/{path.parent.parent.name} seed {seed}"
                    found[name] = (summary, place / table)
    return found
