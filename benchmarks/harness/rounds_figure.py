"""Rounds beside the bare loop, as one picture: bars of ratios, and the peak of the memory."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.harness.contenders import BARE, CONTENDERS

_INK = "#222222"
# Titles of the groups, top down, with their colours.
_GROUPS = {
    "fedta, all weights": "#20639b",
    "fedta, a tenth of the weights": "#7fb2dc",
    "others, all weights": "#a6a6a6",
}
_LABELS = {
    "bare-kernels": "bare loop, our kernels",
    "in-process": "in one process",
    "flower": "Flower's engine",
    "stock": "stock Flower app",
    "pfl": "pfl-research",
}
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "text.color": _INK,
    "svg.hashsalt": "fedta",  # the same file for the same figures
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
_TITLE_ROOM = 0.85  # in rows


def save_rounds(path: Path, job: dict[str, Any]) -> None:
    """Save the bars of a job, as `bench_rounds` reports it, as SVG and PNG beside each other.

    Parameters
    ----------
    path : Path
        Its suffix is replaced.
    """
    rows = {name: row for name, row in job["contenders"].items() if "skipped" not in row}
    bare = rows.pop(BARE.name, {})
    groups = {_group(name) for name in rows}
    height = 0.9 + 0.21 * (len(rows) + _TITLE_ROOM * len(groups))
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.3, height), layout="constrained")
        FigureCanvasAgg(figure)
        _bars(figure.subplots(), rows, bare)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=300)


def _bars(axes: Axes, rows: dict[str, Any], bare: dict[str, Any]) -> None:
    side = axes.get_yaxis_transform()
    place, group = -1.0, ""
    labels: dict[float, str] = {}
    for name, row in rows.items():
        place += 1
        if _group(name) != group:
            group = _group(name)
            labels[place] = group
            place += _TITLE_ROOM
        labels[place] = _label(name)
        axes.barh(place, row["ratio"], height=0.72, color=_GROUPS[group])
        low, high = min(row["ratios"]), max(row["ratios"])
        axes.plot([low, high], [place, place], color=_INK, lw=0.8)
        axes.text(max(high, 1.0), place, f"  {row['ratio']:.2f}", va="center")
        axes.text(1.13, place, _peak(row), va="center", ha="right", transform=side)
    axes.text(1.13, -1.0, "peak memory", va="center", ha="right", transform=side)
    axes.text(1.0, -1.0, _bare_label(bare), va="center", ha="center")
    axes.vlines(1.0, -0.5, place + 0.5, color=_INK, lw=0.9, ls=(0, (4, 2)))
    axes.set_yticks(list(labels), list(labels.values()))
    for tick in axes.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() in _GROUPS else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place + 0.6, -1.4)
    axes.set_xlim(0, 1.1 * max([1.2, *(max(row["ratios"]) for row in rows.values())]))
    axes.set_xlabel("time per round, divided by that of the bare PyTorch loop")


def _group(name: str) -> str:
    ours, masked, others = _GROUPS
    contender = CONTENDERS[name]
    if contender.kind not in ("in-process", "flower"):
        return others
    return ours if contender.density == 1 else masked


def _label(name: str) -> str:
    contender = CONTENDERS[name]
    many = "s"[: contender.actors - 1]
    if contender.kind in ("flower", "stock"):
        return f"{_LABELS[contender.kind]}, {contender.actors} actor{many}"
    if contender.actors > 1:
        return f"{_LABELS[contender.kind]}, {contender.actors} processes"
    return _LABELS[contender.kind]


def _bare_label(bare: dict[str, Any]) -> str:
    facts = [f"{bare['seconds']:.2f} s" if bare else "", _peak(bare)]
    known = ", ".join(fact for fact in facts if fact)
    return f"bare loop ({known})" if known else "bare loop"


def _peak(row: dict[str, Any]) -> str:
    peak = row.get("peak-mib", {}).get("total")
    return "" if peak is None else f"{peak / 1024:.1f} GiB"
