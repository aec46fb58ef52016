"""Pictures of a search: mode map, fronts of error and time, what was predicted and achieved, transfer.

As `figures.py`: each returns a `Figure`, an inline SVG for the page and a PNG to keep. Data come as plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .figures import DENSE, FAINT, FAMILIES, INK, MUTED, SPARSE, Figure, beside, canvas_of, label

LETTERED = 64  # cells of a panel that still get letters
RIVALS = "Ds^v"  # markers of other plans
FLOOR = 1e-9  # relative errors below it are drawn there


@dataclass(frozen=True)
class ModePanel:
    """Layers x heads of one noise bin.

    Attributes:
        title: For example "noise level 0.30 to 0.60".
        families: Family names, [layers, heads].
        densities: Shares computed, [layers, heads].
    """

    title: str
    families: np.ndarray
    densities: np.ndarray


@dataclass(frozen=True)
class HeadFront:
    """The options of one head.

    Attributes:
        title: For example "layer 3, head 1".
        times: Time of each option over that of a full head.
        errors: Relative squared error; NaN leaves a point out.
        families: Family of each option.
        remainders: Whether it has one.
        hull: Numbers of the options on the lower hull, by rising time.
        chosen: Number of the chosen option; None marks none.
    """

    title: str
    times: Sequence[float]
    errors: Sequence[float]
    families: Sequence[str]
    remainders: Sequence[bool]
    hull: Sequence[int]
    chosen: int | None


def mode_map(panels: Sequence[ModePanel]) -> Figure:
    """Draws layers x heads coloured by family, one panel per noise bin; the denser a head, the stronger its colour.

    Args:
        panels: One or more, all of one shape.
    """
    from matplotlib.patches import Patch

    layers, heads = panels[0].families.shape
    columns = min(len(panels), 1 if layers > 4 * heads and len(panels) == 1 else 2 if layers > 24 else 3)
    columns = min(columns, 2) if layers > 2 * heads else columns
    rows = -(-len(panels) // columns)
    wide = 11.0 / columns
    high = max(0.62, (wide - 0.6) * heads / layers) + 0.62
    with canvas_of("modes", 11.0, high * rows + 0.6, nrows=rows, ncols=columns, squeeze=False) as (
        canvas,
        axes,
        done,
    ):
        for place in axes.flat:
            place.set_axis_off()
        for place, panel in zip(axes.flat, panels, strict=False):
            _draw_panel(place, panel, lettered=layers * heads <= LETTERED)
        seen = [f for f in FAMILIES if any((panel.families == f).any() for panel in panels)]
        handles = [Patch(facecolor=FAMILIES[f][0], label=f"{FAMILIES[f][1]}  {label(f)}") for f in seen]
        canvas.legend(
            handles=handles, loc="outside lower center", ncols=min(len(seen), 8), frameon=False, fontsize=9
        )
    return done[0]


def _draw_panel(place: Any, panel: ModePanel, *, lettered: bool) -> None:
    from matplotlib.colors import to_rgb

    layers, heads = panel.families.shape
    place.set_axis_on()
    colours = np.array([[to_rgb(FAMILIES[family][0]) for family in row] for row in panel.families])
    strength = 0.35 + 0.65 * np.sqrt(np.clip(panel.densities, 0, 1))[..., None]
    pixels = np.concatenate([colours, strength], axis=-1).transpose(1, 0, 2)
    place.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0, layers, heads, 0))
    for edge in range(1, layers):
        place.axvline(edge, color="white", lw=0.6 if layers <= 64 else 0.2)
    for edge in range(1, heads):
        place.axhline(edge, color="white", lw=0.6 if heads <= 64 else 0.2)
    if lettered:
        for layer, head in np.ndindex(layers, heads):
            letter = FAMILIES[str(panel.families[layer, head])][1]
            words = f"{letter} {panel.densities[layer, head]:.2f}".replace(" 0.", " .")
            ink = "white" if letter in "FDU" and panel.densities[layer, head] > 0.2 else INK
            place.text(layer + 0.5, head + 0.5, words, ha="center", va="center", fontsize=7, color=ink)
    for axis, count in ((place.xaxis, layers), (place.yaxis, heads)):
        step = max(1, count // 10)
        axis.set_ticks([n + 0.5 for n in range(0, count, step)], [str(n) for n in range(0, count, step)])
    place.tick_params(length=0, labelsize=7)
    place.spines[:].set_visible(False)
    place.set_title(panel.title, fontsize=9)
    place.set_ylabel("head", fontsize=8)


def _log_axis(axis: Any, *, fine: bool = False) -> None:
    """Powers of ten (fine: also 2 and 5 times them) as plain numbers: texts are not parsed as mathematics."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, (1, 2, 5) if fine else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value < 1e-3 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _floor(errors: Sequence[float]) -> float:
    """Where an error of zero is drawn: below the least one that is not."""
    positive = [value for value in errors if value > FLOOR]
    return max(FLOOR, 0.4 * min(positive, default=FLOOR))


def head_fronts(heads: Sequence[HeadFront], columns: int = 3) -> Figure:
    """Draws every option of some heads by time and error, the hull, and what was chosen.

    Args:
        heads: One or more.
        columns: Panels in a row.
    """
    rows = -(-len(heads) // columns)
    floor = _floor([error for head in heads for error in head.errors])
    with canvas_of(
        "fronts",
        3.55 * columns,
        2.9 * rows + 0.5,
        nrows=rows,
        ncols=columns,
        squeeze=False,
        sharex=True,
        sharey=True,
    ) as (canvas, axes, done):
        for place in axes.flat:
            place.set_axis_off()
        for number, (place, head) in enumerate(zip(axes.flat, heads, strict=False)):
            _draw_front(place, head, floor)
            if number % columns == 0:
                place.set_ylabel("relative squared error", fontsize=8)
            if number + columns >= len(heads):
                place.set_xlabel("time over that of a full head", fontsize=8)
                place.tick_params(labelbottom=True)
        _front_legend(canvas, heads, columns)
    return done[0]


def _draw_front(place: Any, head: HeadFront, floor: float) -> None:
    place.set_axis_on()
    times, errors = np.asarray(head.times), np.maximum(np.asarray(head.errors, dtype=float), floor)
    remainder, families = np.asarray(head.remainders, dtype=bool), np.asarray(head.families)
    hull = list(head.hull)
    place.plot(times[hull], errors[hull], color=FAINT, lw=1.1, zorder=1)
    for family in FAMILIES:
        for filled in (False, True):
            some = (families == family) & (remainder == filled) & ~np.isnan(errors)
            if some.any():
                colour = FAMILIES[family][0]
                face = colour if filled or family in ("full", "skip") else "none"
                place.scatter(
                    times[some], errors[some], s=13, facecolors=face, edgecolors=colour, linewidths=0.8
                )
    if head.chosen is not None and not np.isnan(errors[head.chosen]):
        at = (times[head.chosen], errors[head.chosen])
        place.scatter(*at, s=120, facecolors="none", edgecolors=INK, linewidths=1.6, zorder=4)
    place.set_yscale("log")
    _log_axis(place.yaxis)
    place.tick_params(labelsize=7)
    place.set_title(head.title, fontsize=9)


def _front_legend(canvas: Any, heads: Sequence[HeadFront], columns: int) -> None:
    from matplotlib.lines import Line2D

    seen = [family for family in FAMILIES if any(family in head.families for head in heads)]
    dot: dict[str, Any] = {"marker": "o", "ls": "", "ms": 4}
    handles = [Line2D([], [], color=FAMILIES[family][0], label=label(family), **dot) for family in seen]
    handles += [
        Line2D([], [], color=FAINT, label="with remainder", **dot),
        Line2D([], [], color=FAINT, label="without", markerfacecolor="none", **dot),
        Line2D([], [], color=INK, label="chosen", marker="o", ls="", ms=9, markerfacecolor="none"),
    ]
    canvas.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 2 * columns),
        frameon=False,
        fontsize=8,
    )


def plan_front(
    speedups: Sequence[float],
    errors: Sequence[float],
    points: Mapping[str, tuple[float, float]],
    what: str = "speed-up of a step",
) -> Figure:
    """Draws the least error that a plan can have at each speed-up, and single plans beside the line.

    Args:
        speedups: Predicted, rising.
        errors: Mean relative squared error of the plan there.
        points: Name to (speed-up, error); the first one is the plan.
        what: Name of the speed-ups.
    """
    floor = _floor([*errors, *(error for _, error in points.values())])
    drawn = np.maximum(errors, floor)
    with canvas_of("planfront", 7.4, 3.6) as (_, place, done):
        place.plot(speedups, drawn, color=SPARSE, lw=1.8, marker="o", ms=3, zorder=2)
        for number, (name, (speedup, error)) in enumerate(points.items()):
            lead = number == 0
            style: dict[str, Any] = {"s": 70, "color": SPARSE}
            if not lead:
                style = {"s": 40, "color": DENSE, "marker": RIVALS[(number - 1) % len(RIVALS)]}
            place.scatter(speedup, max(error, floor), zorder=4 if lead else 3, label=name, **style)
        place.legend(frameon=False, fontsize=9, loc="lower right")
        place.set_yscale("log")
        _log_axis(place.yaxis)
        place.set_xlabel(f"predicted {what}")
        place.set_ylabel("mean relative error")
    return done[0]


def achieved_bars(rows: Sequence[tuple[str, float, float | None]]) -> Figure:
    """Draws the milliseconds of a step: measured, predicted, achieved.

    Args:
        rows: (name, ms, speed-up against dense or None); "dense" first.
    """
    with canvas_of("achieved", 7.4, 0.5 * len(rows) + 0.3) as (_, place, done):
        top = max(row[1] for row in rows)
        for number, (_name, took, speedup) in enumerate(rows):
            colour = DENSE if number == 0 else SPARSE
            alpha = 0.45 if 0 < number < len(rows) - 1 else 1.0
            place.barh(number, took, height=0.62, color=colour, alpha=alpha, linewidth=0)
            words = f"{took:.0f} ms" if took >= 10 else f"{took:.2f} ms"
            more = "" if speedup is None else f",  {speedup:.2f}×"
            beside(place, took, number, words + more, fontsize=10, fontweight="bold")
        place.set_yticks(range(len(rows)), [row[0] for row in rows])
        place.invert_yaxis()
        place.set_xlim(0, 1.3 * top)
        place.spines[["left", "bottom"]].set_visible(False)
        place.tick_params(length=0)
        place.set_xticks([])
    return done[0]


def transfer_scatter(own: Sequence[float], carried: Sequence[float], families: Sequence[str]) -> Figure:
    """Draws the error of every head's choice on its own prompts against that on others.

    Args:
        own: Relative squared errors on the prompts of the calibration.
        carried: The same choices on other prompts.
        families: Family of each choice.
    """
    from matplotlib.lines import Line2D

    floor = _floor([*own, *carried])
    x, y = (np.maximum(np.asarray(values, dtype=float), floor) for values in (own, carried))
    low, high = float(min(x.min(), y.min())) * 0.7, float(max(x.max(), y.max())) * 1.4
    with canvas_of("transfer", 8.4, 3.7) as (canvas, place, done):
        place.plot([low, high], [low, high], color=MUTED, lw=1.2, zorder=1)
        seen = [family for family in FAMILIES if family in families]
        for family in seen:
            some = np.asarray(families) == family
            place.scatter(x[some], y[some], s=15, color=FAMILIES[family][0], linewidths=0, alpha=0.85)
        place.set_xscale("log")
        place.set_yscale("log")
        fine = high < 30 * low
        _log_axis(place.xaxis, fine=fine)
        _log_axis(place.yaxis, fine=fine)
        place.set_xlim(low, high)
        place.set_ylim(low, high)
        place.set_xlabel("error on the prompts it was chosen on")
        place.set_ylabel("error on other prompts")
        handles = [
            Line2D([], [], color=FAMILIES[family][0], label=label(family), marker="o", ls="", ms=4)
            for family in seen
        ]
        canvas.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    return done[0]
