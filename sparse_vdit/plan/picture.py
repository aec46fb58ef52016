"""A plan to look at: `summary`, a text table, and `figure`, layers x heads coloured by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_vdit.plan.transformer import TransformerPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparse_vdit.plan.sparse import SparsePlan

# The palette of Okabe and Ito, readable with any colour vision; letters say the same without colour.
KINDS = {
    "full": ("F", "#D55E00"),
    "skip": ("S", "#999999"),
    "diagonal": ("D", "#56B4E9"),
    "multi_diagonal": ("M", "#009E73"),
    "vertical_stripe": ("V", "#E69F00"),
    "periodic_tiles": ("T", "#CC79A7"),
    "union": ("U", "#F0E442"),
    "block_mask": ("B", "#0072B2"),
}


def letters(plan: TransformerPlan, bin_: int) -> list[str]:
    """One string per layer, one letter per head."""
    return ["".join(KINDS[kind][0] for kind in heads) for heads in plan.kinds()[bin_]]


def summary(plan: SparsePlan) -> str:
    """The text table of `SparsePlan.summary`."""
    g = plan.geometry
    other = f"{g.prefix} before, {g.suffix} after"
    lines = [
        f"SparsePlan: {g.frames} x {g.height} x {g.width} tokens, other tokens {other}, "
        f"blocks {g.block_q} x {g.block_k}, density {plan.density():.3f}"
    ]
    note = plan.provenance.get("for_geometry")
    if isinstance(note, dict):
        before, after = note.get("density_before"), note.get("density_after")
        lines.append(
            f"carried over from another geometry: density {before} before, {after} now; not verified"
        )
    for name, part in plan.transformers.items():
        lines += _transformer_lines(name, part)
    lines.append("letters: " + ", ".join(f"{letter} {kind}" for kind, (letter, _) in KINDS.items()))
    return "\n".join(lines)


def _transformer_lines(name: str, part: TransformerPlan) -> list[str]:
    m = part.model
    lines = [
        f"{name}: {m.transformer_class}, {m.layers} layers x {m.heads} heads x {m.head_dim}; "
        f"dense above noise level {part.dense_above:g}"
    ]
    densities = part.densities()
    for bin_ in range(len(part.bins) - 1):
        share = float(np.mean(~np.isnan(part.betas[bin_])))
        kinds = ", ".join(f"{kind} {count}" for kind, count in part.families(bin_).items())
        lines.append(
            f" noise level {part.bins[bin_]:g}..{part.bins[bin_ + 1]:g}: "
            f"density {densities[bin_].mean():.3f}, "
            f"remainder in {share:.0%} of heads; {kinds}"
        )
        for layer, text in enumerate(letters(part, bin_)):
            lines.append(f"  {layer:3d}  {text}  {densities[bin_, layer].mean():.3f}")
    return lines


def figure(plan: SparsePlan, name: str | None = None) -> Figure:
    """The figure of `SparsePlan.figure`: one panel per bin, a row per layer, a column per head."""
    try:
        from matplotlib.colors import to_rgb
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise ImportError(
            "figure: matplotlib is not installed, expected it (pip install matplotlib)"
        ) from None
    part = plan.sole if name is None else plan.for_transformer(name)
    bins, layers, heads = part.shape
    panels = min(bins, 16)
    size = (1.2 + panels * max(1.6, 0.24 * heads + 0.6), 1.6 + 0.24 * layers)
    picture = Figure(figsize=(min(size[0], 40.0), min(size[1], 40.0)), layout="constrained")
    axes = np.atleast_1d(picture.subplots(1, panels, sharey=True))
    kinds = part.kinds()
    for bin_ in range(panels):
        _panel(axes[bin_], part, kinds[bin_], bin_, to_rgb)
    axes[0].set_ylabel("layer")
    used = [kind for kind in KINDS if any(kind in row for panel in kinds for row in panel)]
    patches = [Patch(facecolor=KINDS[kind][1], label=f"{KINDS[kind][0]} {kind}") for kind in used]
    picture.legend(handles=patches, loc="outside lower center", ncols=min(4, len(patches)), fontsize=8)
    return picture


def _panel(axes: Any, part: TransformerPlan, kinds: list[list[str]], bin_: int, to_rgb: Any) -> None:
    colours = np.array([[to_rgb(KINDS[kind][1]) for kind in row] for row in kinds])
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    names = np.array(kinds)
    for kind in sorted(set(names.ravel().tolist())):
        layer, head = np.nonzero(names == kind)
        axes.scatter(head, layer, 26, "black", marker=f"${KINDS[kind][0]}$", linewidths=0, label=kind)
    density = part.densities()[bin_].mean()
    axes.set_title(f"noise {part.bins[bin_]:g}..{part.bins[bin_ + 1]:g}\ndensity {density:.3f}", fontsize=8)
    axes.set_xlabel("head")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=7)
