"""The results of a run in words and pictures: the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..plan import SparsePlan
from ..report import figures, page, search_figures, video
from ..search.families import DENSITY, FULL_ABOVE
from ..search.front import Option
from .calibrate import PROMPT, SEED, dense_steps
from .fronts import examples, head_front
from .results import Results, finite, mean_loss, noise_range, numbers

MAPS = 6  # heads whose attention is drawn
GAIN = 4  # of the difference pictures


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def build_page(results: Results) -> page.Page:
    """Returns the page."""
    found = numbers(results)
    psnr, rise = found["psnr_db"], found["heldout_loss_sparse"] / found["heldout_loss_dense"] - 1
    tiles = [
        page.Tile(f"{results.speedup:.2f}×", "speed-up", "all transformer calls, dense warm-up included"),
        page.Tile(_db(psnr), "PSNR", f"against dense, mean of {len(results.seeds)} videos"),
        page.Tile(f"{found['ssim']:.3f}", "SSIM", "Gaussian 11×11 window"),
        page.Tile(f"{found['density']:.0%}", "density", "query-key pairs computed in a sparse step"),
        page.Tile(f"{rise:+.1%}", "held-out loss", f"{len(results.losses['dense'])} unseen clips"),
    ]
    return page.Page(
        title="sparse-vdit demo",
        headline=f"The same videos, {results.speedup:.2f} times faster",
        lead=(
            "A small trained video diffusion transformer runs twice in the stock diffusers pipeline: "
            "with dense attention, and with a sparse pattern for each head. Same prompts, same noise, "
            "same weights."
        ),
        tiles=tiles,
        frames=len(results.ways["dense"].runs[0].video),
        fps=video.FPS,
        clips=[_clip(results, number) for number in range(len(results.seeds))],
        sections=[section(results, found) for section in SECTIONS.values()],
        notes=results.notes,
        facts=[(name, str(value)) for name, value in results.facts.items()],
        footer=f"plan {results.plan.hash}",
    )


def _clip(results: Results, number: int) -> page.Clip:
    dense, sparse = (results.ways[name].runs[number].video for name in ("dense", "sparse"))
    fidelity = results.ways["sparse"].fidelity[number]
    values = [
        ("PSNR", _db(finite(fidelity.psnr_db))),
        ("worst frame", _db(finite(fidelity.psnr_worst_frame_db))),
        ("SSIM", f"{fidelity.ssim:.3f}"),
    ]
    if fidelity.flip is not None:
        values.append(("FLIP", f"{fidelity.flip:.3f}"))
    if fidelity.vmaf is not None:
        values.append(("VMAF", f"{fidelity.vmaf:.1f}"))
    views = [
        ("dense", dense),
        ("sparse", sparse),
        (f"difference × {GAIN}", video.difference(dense, sparse, GAIN)),
    ]
    sheets = [(name, video.sheet_uri(frames)) for name, frames in views]
    return page.Clip(results.prompts[number], results.seeds[number], sheets, values)


TITLES = {
    "sparse": "plan per head",
    "uniform": "best uniform pattern (some heads the next)",
    "permuted": "plan permuted among heads",
    "random": "random blocks",
}


def _controls(results: Results, found: dict[str, Any]) -> page.Section:
    rows, cells = [], []
    for name, title in TITLES.items():
        way, loss = results.ways[name], mean_loss(results, name)
        rows.append((title, way.mean("psnr_db"), way.mean("ssim"), loss))
        flip = "–" if (error := way.mean("flip")) is None else f"{error:.3f}"
        rise = f"{loss / found['heldout_loss_dense'] - 1:+.1%}"
        share = f"{results.densities[name]:.3f}"
        quality = [_db(way.mean("psnr_db")), f"{way.mean('ssim'):.3f}", flip]
        cells.append([title, share, *quality, f"{loss:.4f}", rise])
    cells.append(["dense", "1", "", "", "", f"{found['heldout_loss_dense']:.4f}", ""])
    return page.Section(
        title="Does it matter which pattern a head gets?",
        text=[
            "Three controls compute the same share of the attention, on the same seeds, with a remainder "
            "wherever the plan has one. If they were as good as the plan, choosing would be idle."
        ],
        figure=figures.control_bars(rows, found["heldout_loss_dense"]),
        caption=(
            "PSNR and SSIM compare with the dense video of the same seed. The held-out loss is the "
            "training objective on unseen clips at noise levels where the plan is sparse; it asks whether "
            "the model got worse, not whether it drew the same sample."
        ),
        table=page.Table(
            ["", "density", "PSNR", "SSIM", "FLIP", "held-out loss", "against dense"], cells, lead=True
        ),
    )


def _time(results: Results, found: dict[str, Any]) -> page.Section:
    dense, sparse = results.ways["dense"], results.ways["sparse"]
    estimate = results.estimate
    attention = dense.seconds_per_step * estimate.share
    rest = dense.seconds_per_step - attention
    ours = min(attention * estimate.plan_ms / estimate.dense_ms, sparse.seconds_per_step)
    bars = figures.time_bars(
        {"attention": attention, "rest": rest}, {"attention": ours, "rest": sparse.seconds_per_step - ours}
    )
    return page.Section(
        title="Where the time goes",
        text=[
            f"Attention takes {estimate.share:.0%} of a stock step: no attention at all would be "
            f"{estimate.ceiling:.1f} times faster. {found['dense_warm_up_steps']} of {results.steps} steps stay "
            f"dense. The calibrated prices of the plan's patterns predicted {results.predicted_speedup:.2f}× before "
            f"anything was run; {results.speedup:.2f}× was measured.",
            f"The sparse kernel alone needs {min(results.kernel_ratio):.2f} to {max(results.kernel_ratio):.2f} of the "
            f"dense kernel's time on the model's own queries and keys.",
        ],
        figure=bars,
        caption="An average step. The split of the sparse bar is predicted, its length is measured.",
    )


def _steps(results: Results, found: dict[str, Any]) -> page.Section:
    dense, sparse = results.ways["dense"], results.ways["sparse"]
    warm_up = found["dense_warm_up_steps"]
    caption = f"Seconds of the transformer in every step, mean of {len(results.seeds)} videos."
    if warm_up:
        caption += f" The first {warm_up} steps are dense in both."
    lines = figures.step_lines(dense.runs[0].noise, dense.seconds_by_step, sparse.seconds_by_step)
    return page.Section(title="Step by step", figure=lines, caption=caption)


def _plan(results: Results, found: dict[str, Any]) -> page.Section:
    plan = results.plan
    bins = [b for b in reversed(range(len(plan.bins) - 1)) if plan.bins[b] < plan.dense_above]
    kinds, densities = np.array(plan.sole.kinds())[bins], plan.sole.densities()[bins]
    titles = [f"noise level {noise_range(plan, b).replace('-', ' to ')}, density {densities[i].mean():.2f}"
              for i, b in enumerate(bins)]  # fmt: skip
    families = ", ".join(f"{count} {figures.label(kind)}" for kind, count in found["head_families"].items())
    by_error = found["head_families_by_error"].items()
    alone = ", ".join(f"{count} {figures.label(kind)}" for kind, count in by_error)
    return page.Section(
        title="Which pattern each head got",
        text=[
            f"One price of time for all heads: each got the pattern and the remainder that lower the error more than "
            f"their milliseconds are worth elsewhere. {families} (by the pattern a head has at most noise levels).",
            f"By output error alone, with patterns of a density up to {DENSITY:g}: {alone}. Full are "
            f"heads that each pattern leaves with an error above {FULL_ABOVE:g}, skippable those that the model's "
            "output hardly feels.",
        ],
        figure=figures.plan_picture(kinds, densities, titles),
        caption="Numbers are densities. Where a head has a remainder, blocks that are not computed take part through "
        "their means.",
    )


def _search(results: Results, found: dict[str, Any]) -> page.Section:
    search, places = found["search"], examples(results)
    pictures = [head_front(results, place) for place in places]
    took, asked = search["seconds"], search["asked"]
    wanted = (
        f"a step {asked['speedup']:g} times faster"
        if "speedup" in asked
        else f"a mean density of {asked['density']:g}"
    )
    return page.Section(
        title="How the plan was found",
        text=[
            f"One other dense video was watched. At {search['steps']} of its steps, on {search['rows']} query rows "
            f"of every head, {search['options']} options were measured: {search['candidates']} patterns, plain and "
            f"with the best bias for the means of what is left out. Their times come from {took['clock']:.0f} s of "
            f"timing this machine. The plan has the least error in its time, for {wanted}: a mean relative error "
            f"of {search['mean_error']:.3g} is expected.",
            f"That took {search['seconds_in_all']:.0f} s, as long as {search['dense_generations']:.1f} dense "
            f"videos: {took['video']:.0f} s for the watched one, with gradients that say how much each head "
            f"matters and {took['probes']:.1f} s for the options; {1e3 * took['choice']:.0f} ms for the choice.",
        ],
        figure=search_figures.head_fronts([picture for picture, _ in pictures], columns=len(pictures)),
        caption=(
            f"Options of some heads at noise level {noise_range(results.plan, places[0][0])}. A head is given "
            "one on its line, or full attention; which one, the price of time that all heads share decides. "
            + " ".join(_words(picture.title, option) for picture, option in pictures)
        ),
    )


def _words(title: str, option: Option) -> str:
    beta = "without a remainder" if option.beta is None else f"with a remainder of bias {option.beta:+.2f}"
    if option.name in ("full", "skip"):
        return f"{title.capitalize()}: {option.name}."
    return f"{title.capitalize()}: {option.name} {beta}."


def _maps(results: Results, _: dict[str, Any]) -> page.Section:
    plan, number = results.plan, results.plan.bin_of(results.calibration.kept_noise)
    heads = [head_map(results, number or 0, layer, head) for layer, head in example_heads(plan, number or 0)]
    return page.Section(
        title="What the heads look at",
        figure=figures.attention_maps(heads),
        caption=(
            f"Attention at noise level {results.calibration.kept_noise:.2f} of the calibration video, in "
            "logarithmic colours over four decades; rows are queries. Each map is in its head's own order of "
            "tokens, and the computed blocks are outlined."
        ),
    )


SECTIONS = {
    "controls": _controls,
    "time": _time,
    "steps": _steps,
    "plan": _plan,
    "search": _search,
    "attention": _maps,
}


def example_heads(plan: SparsePlan, number: int) -> list[tuple[int, int]]:
    """Returns up to `MAPS` (layer, head), as many families as possible, spread over the layers."""
    kinds = plan.sole.kinds()[number]
    waiting: dict[str, list[tuple[int, int]]] = {}
    for layer, row in enumerate(kinds):
        for head, kind in enumerate(row):
            waiting.setdefault(kind, []).append((layer, head))
    found: list[tuple[int, int]] = []
    while len(found) < MAPS and any(waiting.values()):
        for places in waiting.values():
            if places and len(found) < MAPS:
                found.append(places.pop(len(places) // 2))
    return sorted(found)


def head_map(results: Results, number: int, layer: int, head: int) -> figures.HeadMap:
    """Returns the attention of a head on the kept queries and keys, in the head's own order."""
    sheet = results.plan.layer(number, layer)
    q, k, _ = results.calibration.kept[layer]
    weights = torch.softmax((q[0, head] @ k[0, head].T) * q.shape[-1] ** -0.5, -1).numpy()
    tokens = np.argsort(sheet.places(head))
    weights = weights[np.ix_(tokens, tokens)]
    geometry, mask = results.plan.geometry, sheet.block_mask(head)
    blocks = (geometry.block_q, geometry.block_k)
    seen = np.kron(mask, np.ones(blocks, bool))[: geometry.tokens, : geometry.tokens]
    order = sheet.order(head)
    borders: tuple[int, ...] = ()
    if order.kind == "frame_major":
        borders = tuple(
            geometry.prefix + frame * geometry.frame_tokens for frame in range(geometry.frames + 1)
        )
    return figures.HeadMap(
        title=f"layer {layer}, head {head}",
        family=results.plan.sole.kinds()[number][layer][head],
        order=order.name,
        density=sheet.density(head),
        recall=float(weights[seen].sum() / geometry.tokens),
        weights=figures.shrink_map(weights),
        mask=mask,
        blocks=blocks,
        borders=borders,
        tokens=geometry.tokens,
    )


def standing_notes(steps: int) -> list[str]:
    """Returns what holds for every run."""
    return [
        f"The plan was chosen on one other video (“{PROMPT}”, seed {SEED}), which is not among those judged.",
        f"The first {dense_steps(steps)} of {steps} steps are dense in all sparse runs, controls included.",
        "PSNR says whether the same sample was drawn, and flatters blur: hence SSIM and the held-out loss.",
        "All metrics are measured on decoded tensors, never on compressed files.",
        "The model is small and was trained briefly: it draws a body of the named colour on the named ground, "
        "where fast bodies move as told, without its shape; the prompts here are of one fast body, which it does best.",
    ]
