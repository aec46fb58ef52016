"""Pictures of a run: attention maps, plan, time of a step, controls. No other file here uses matplotlib.

Every function returns a `Figure`: an inline SVG, whose text takes the colour of the page around it, and a PNG
on white. Colours are Okabe and Ito's; families keep theirs in all pictures.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import replacing

FAMILIES: dict[str, tuple[str, str]] = {  # family: colour, letter
    "full": ("#555555", "F"),
    "skip": ("#BBBBBB", "0"),
    "diagonal": ("#0072B2", "D"),
    "multi_diagonal": ("#E69F00", "M"),
    "vertical_stripe": ("#009E73", "S"),
    "periodic_tiles": ("#CC79A7", "T"),
    "union": ("#D55E00", "U"),
    "mask": ("#F0E442", "B"),
}
DENSE, SPARSE, MUTED = "#888888", "#0072B2", "#B8B8B8"
INK = "#010203"  # stands for the page's text colour
FAINT = "#7f7f7f"
MAP_SIDE = 257  # pixels of an attention map, at most
_DECADES = 4.0  # of the maps' logarithmic colours
_LEVELS = 32  # of these colours; few, so that the pictures stay small


@dataclass(frozen=True)
class HeadMap:
    """The attention of one head, for a picture.

    Attributes:
        title: For example "layer 3, head 1".
        family: Pattern family, a key of `FAMILIES`.
        order: Order of the tokens in the map.
        density: Share of the token pairs computed.
        recall: Share of the attention mass in the computed blocks.
        weights: Softmax weights, made smaller by `shrink_map`, [n, n].
        mask: Computed blocks, bool [query blocks, key blocks].
        blocks: Tokens of a query block and of a key block.
        borders: Places of frame borders in tokens; empty where frames are not consecutive.
        tokens: Number of tokens along a side.
    """

    title: str
    family: str
    order: str
    density: float
    recall: float
    weights: np.ndarray
    mask: np.ndarray
    blocks: tuple[int, int]
    borders: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Figure:
    """A finished picture: `svg` for the page, `png` to keep."""

    svg: str
    png: bytes

    def save(self, path: Path) -> None:
        """Writes the PNG, whole or not at all."""
        with replacing(path) as draft:
            draft.write_bytes(self.png)


def label(family: str) -> str:
    """Returns a family's name for readers."""
    return family.replace("_", "-")


@contextlib.contextmanager
def canvas_of(name: str, width: float, height: float, **grid: Any) -> Iterator[tuple[Any, Any, list[Figure]]]:
    """Yields (figure, axes, a list that holds the finished `Figure` afterwards)."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "text.parse_math": False,
    }
    done: list[Figure] = []
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(canvas)
        yield canvas, canvas.subplots(**grid) if grid else canvas.subplots(), done
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        canvas.savefig(png, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    done.append(Figure(_inline(svg.getvalue(), name), png.getvalue()))


def _inline(svg: str, name: str) -> str:
    """Makes a matplotlib SVG fit into a page: no prolog, own ids, the page's text colour and width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img">{body}'


def shrink_map(weights: np.ndarray, side: int = MAP_SIDE) -> np.ndarray:
    """Makes a map [n, n] at most `side` wide by maxima, so that thin diagonals stay visible."""
    n = len(weights)
    step = -(-n // side)
    edges = np.arange(0, n, step)
    return np.maximum.reduceat(np.maximum.reduceat(weights, edges, 0), edges, 1)


def attention_maps(heads: Sequence[HeadMap], columns: int = 3) -> Figure:
    """Draws attention maps in logarithmic colours, the computed blocks outlined.

    Args:
        heads: One or more maps.
        columns: Maps in a row.
    """
    rows = -(-len(heads) // columns)
    with canvas_of("maps", 3.4 * columns, 3.75 * rows, nrows=rows, ncols=columns, squeeze=False) as (
        _,
        axes,
        done,
    ):
        for place in axes.flat:
            place.set_axis_off()
        for place, head in zip(axes.flat, heads, strict=False):
            _draw_map(place, head)
    return done[0]


def _draw_map(place: Any, head: HeadMap) -> None:
    from matplotlib.collections import LineCollection

    extent = (0, head.tokens, head.tokens, 0)
    top = float(head.weights.max()) or 1.0
    floor = top * 10**-_DECADES
    shades = np.log10(np.maximum(head.weights, floor) / top)
    shades = np.round(shades * (_LEVELS / _DECADES)) * (_DECADES / _LEVELS)
    place.imshow(shades, cmap="magma", vmin=-_DECADES, vmax=0, extent=extent, interpolation="none")
    for border in head.borders:
        place.axvline(border, color="white", lw=0.3, alpha=0.25)
        place.axhline(border, color="white", lw=0.3, alpha=0.25)
    place.add_collection(
        LineCollection(outline(head.mask, head.blocks, head.tokens), colors="#56E1FF", linewidths=0.8)
    )
    place.set_xlim(0, head.tokens)
    place.set_ylim(head.tokens, 0)
    place.set_title(
        f"{head.title}: {label(head.family)}\n{head.density:.0%} computed, {head.recall:.0%} of the mass",
        fontsize=9,
    )


def outline(mask: np.ndarray, blocks: tuple[int, int], tokens: int) -> list[list[tuple[float, float]]]:
    """Returns the borders between computed and other blocks as lines [(x, y), (x, y)] in tokens.

    Args:
        mask: bool [query blocks, key blocks].
        blocks: Tokens of a query block and of a key block; the last ones may be short.
        tokens: Number of tokens along a side.
    """
    lines = []
    for upright, cells in ((False, mask), (True, mask.T)):
        step, along = blocks[::-1] if upright else blocks
        changes = np.diff(np.pad(cells.astype(np.int8), ((1, 1), (0, 0))), axis=0) != 0
        for border, row in enumerate(changes):
            for start, stop in _runs(row):
                ends = [(start * along, border * step), (stop * along, border * step)]
                lines.append([(float(min(a, tokens)), float(min(b, tokens))) for a, b in ends])
                if upright:
                    lines[-1] = [(y, x) for x, y in lines[-1]]
    return lines


def _runs(row: np.ndarray) -> np.ndarray:
    """Start and end of every run of True, int [n, 2]."""
    return np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1))).reshape(-1, 2)


def beside(place: Any, x: float, y: float, words: str, **style: Any) -> None:
    """Writes words to the right of a point."""
    place.annotate(words, (x, y), xytext=(6, 0), textcoords="offset points", va="center", color=INK, **style)


def plan_picture(families: np.ndarray, densities: np.ndarray, titles: Sequence[str]) -> Figure:
    """Draws layers x heads in the colours of their families, one panel per noise bin.

    Args:
        families: Family names, [bins, layers, heads].
        densities: Shares computed, [bins, layers, heads].
        titles: One per bin.
    """
    from matplotlib.patches import Patch

    bins, layers, heads = families.shape
    size = max(6.0, 0.72 * layers + 1), (0.56 * heads + 0.75) * bins + 0.7
    with canvas_of("plan", *size, nrows=bins, squeeze=False) as (canvas, axes, done):
        for number, place in enumerate(axes[:, 0]):
            for layer, head in np.ndindex(layers, heads):
                _draw_cell(place, layer, head, families[number, layer, head], densities[number, layer, head])
            place.set_xlim(0, layers)
            place.set_ylim(heads, 0)
            place.set_aspect("equal")
            place.set_xticks(np.arange(layers) + 0.5, [str(layer) for layer in range(layers)])
            place.set_yticks(np.arange(heads) + 0.5, [f"head {head}" for head in range(heads)])
            place.tick_params(length=0)
            place.spines[:].set_visible(False)
            place.set_title(titles[number])
        axes[-1, 0].set_xlabel("layer")
        seen = [family for family in FAMILIES if (families == family).any()]
        handles = [Patch(facecolor=FAMILIES[f][0], label=f"{FAMILIES[f][1]}  {label(f)}") for f in seen]
        canvas.legend(handles=handles, loc="outside lower center", ncols=len(seen), frameon=False, fontsize=9)
    return done[0]


def _draw_cell(place: Any, layer: int, head: int, family: str, density: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    colour, letter = FAMILIES[family]
    shape = "round,pad=0,rounding_size=0.12"
    corner = (layer + 0.06, head + 0.06)
    place.add_patch(FancyBboxPatch(corner, 0.88, 0.88, linewidth=0, boxstyle=shape, facecolor=colour))
    middle = {"ha": "center", "va": "center", "color": "black" if letter in "0MTB" else "white"}
    place.text(layer + 0.5, head + 0.38, letter, fontsize=10, fontweight="bold", **middle)
    place.text(layer + 0.5, head + 0.72, f"{density:.2f}", fontsize=7, **middle)


def time_bars(dense: Mapping[str, float], sparse: Mapping[str, float]) -> Figure:
    """Draws where the seconds of an average step go, dense above sparse.

    Args:
        dense: Seconds of "attention" and "rest" of the stock pipeline.
        sparse: The same of the sparse one.
    """
    with canvas_of("time", 7.2, 1.75) as (_, place, done):
        for row, (seconds, colour) in enumerate(((dense, DENSE), (sparse, SPARSE))):
            left = 0.0
            for part, alpha in (("attention", 1.0), ("rest", 0.45)):
                place.barh(row, seconds[part], left=left, height=0.62, color=colour, alpha=alpha, linewidth=0)
                if seconds[part] > 0.13 * sum(dense.values()):
                    words = f"{part} {seconds[part]:.2f} s"
                    ink = "white" if part == "attention" else INK
                    middle = left + seconds[part] / 2
                    place.text(middle, row, words, ha="center", va="center", fontsize=9, color=ink)
                left += seconds[part]
            beside(place, left, row, f"{left:.2f} s", fontsize=10, fontweight="bold")
        place.set_yticks([0, 1], ["dense", "sparse"])
        place.invert_yaxis()
        place.set_xlim(0, 1.12 * sum(dense.values()))
        place.spines[["left", "bottom"]].set_visible(False)
        place.tick_params(length=0)
        place.set_xticks([])
    return done[0]


def control_bars(
    rows: Sequence[tuple[str, float | None, float | None, float | None]], dense_loss: float
) -> Figure:
    """Draws PSNR, SSIM and rise of the held-out loss of the plan and its controls.

    Args:
        rows: (name, PSNR in dB, SSIM, held-out loss); the plan comes first. None leaves a bar out.
        dense_loss: Held-out loss of dense attention.
    """
    names = [row[0] for row in rows]
    losses = [None if row[3] is None else 100 * (row[3] / dense_loss - 1) for row in rows]
    panels = (
        ("PSNR against dense, dB", [row[1] for row in rows], "{:.1f}"),
        ("SSIM against dense", [row[2] for row in rows], "{:.3f}"),
        ("held-out loss against dense", losses, "{:+.1f} %"),
    )
    with canvas_of("controls", 9.6, 0.42 * len(rows) + 0.75, ncols=3, sharey=True) as (_, axes, done):
        for place, (title, values, form) in zip(axes, panels, strict=True):
            for row, value in enumerate(values):
                if value is None:
                    continue
                place.barh(row, value, height=0.66, color=SPARSE if row == 0 else MUTED, linewidth=0)
                beside(place, max(value, 0), row, form.format(value), fontsize=9)
            known = [value for value in values if value is not None] or [1.0]
            low = min(0.0, *known)
            place.set_xlim(low, low + 1.3 * max(max(known) - low, 1e-9))
            place.set_title(title)
            place.set_yticks(range(len(names)), names)
            place.tick_params(length=0)
            place.set_xticks([])
            place.spines[["left", "bottom"]].set_visible(False)
        axes[0].invert_yaxis()
    return done[0]


def step_lines(noise: Sequence[float], dense: Sequence[float], sparse: Sequence[float]) -> Figure:
    """Draws the seconds of every step over its number, dense and sparse; `noise` names the steps."""
    with canvas_of("steps", 7.2, 2.3) as (_, place, done):
        steps = np.arange(1, len(noise) + 1)
        for seconds, colour, name in ((dense, DENSE, "dense"), (sparse, SPARSE, "sparse")):
            place.plot(steps, seconds, color=colour, marker="o", ms=4, lw=1.6)
            end = (steps[-1], seconds[-1])
            beside(place, *end, name)
        place.set_ylim(0, 1.15 * max(*dense, *sparse))
        shown = range(0, len(noise), -(-len(noise) // 16))
        place.set_xticks([i + 1 for i in shown], [f"{i + 1}\n{noise[i]:.2f}" for i in shown], fontsize=8)
        place.set_xlabel("step, and its noise level")
        place.set_ylabel("seconds")
    return done[0]
