"""The sections of the page: predicted and achieved, mode map, fronts, transfer, attention.

A section that lacks its data is left out. Figures: `report/search_figures.py`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparse_vdit.plan import SparsePlan, TransformerPlan
from sparse_vdit.report import figures, page, search_figures
from sparse_vdit.search.decisions import Decisions
from sparse_vdit.search.front import front
from sparse_vdit.search.rules import best_uniform
from sparse_vdit.search.select import select

from .heads import example_heads, head_maps, middle_step
from .judge import Verification
from .story import Story, decibels, percent
from .transfer import chosen_options, errors_of, mean_error, planned_ms

CURVE = 12  # points of the plan's front
MAX_PANELS = 12


def predicted_and_achieved(story: Story) -> list[page.Section]:
    """Milliseconds of a step."""
    dense, planned = story.attention_ms
    rest, found = story.rest_ms, story.found
    rows: list[tuple[str, float, float | None]] = [
        ("dense", dense + rest, None),
        ("predicted", planned + rest, (dense + rest) / (planned + rest)),
    ]
    cells = [
        ["attention, dense", f"{dense:.1f} ms", ""],
        [
            "attention under the plan, predicted",
            f"{planned:.1f} ms",
            f"{dense / planned:.2f}×" if planned > 0 else "",
        ],
    ]
    if story.folder.stock is not None:
        share, ceiling = dense / (dense + rest), (dense + rest) / rest if rest > 0 else math.inf
        cells.append(["the rest of a step", f"{rest:.1f} ms", f"ceiling {ceiling:.2f}×"])
        text = [
            f"Attention is {share:.0%} of a dense step: if it took no time, a step would be {ceiling:.2f} times faster."
        ]
    else:
        text = ["The rest of a step was not measured: these are times of the attention alone."]
    if found is not None:
        took, stock = float(np.mean(found.plan_ms)), float(np.mean(found.dense_ms))
        predicted = (dense + rest) / (planned + rest)
        rows = [
            ("dense", stock, None),
            ("predicted", stock / predicted, predicted),
            ("achieved", took, found.speedup),
        ]
        cells.append(
            ["transformer step, dense, in the verification", f"{np.mean(found.dense_ms):.1f} ms", ""]
        )
        cells.append(["transformer step under the plan, achieved", f"{took:.1f} ms", f"{found.speedup:.2f}×"])
    sections = [
        page.Section(
            title="Predicted and achieved",
            text=text,
            figure=search_figures.achieved_bars(rows),
            caption="Milliseconds of a denoising step, mean over all steps, warm-up included. "
            + (
                "Nothing was generated under this plan yet."
                if found is None
                else "Dense and achieved took turns in the verification; predicted is drawn on that dense step."
            ),
            table=page.Table(["", "per step", ""], cells),
        )
    ]
    if found is not None:
        sections.append(_fidelity(found))
    return sections


def _fidelity(found: Verification) -> page.Section:
    head = ["prompt", "seed", "PSNR", "worst frame", "SSIM", "step, dense", "step, plan"]
    rows = [
        [
            one.prompt[:60] + ("…" if len(one.prompt) > 60 else ""),
            str(one.seed),
            decibels(one.psnr_db),
            decibels(one.psnr_worst_frame_db),
            f"{one.ssim:.3f}",
            f"{one.dense_ms:.0f} ms",
            f"{one.plan_ms:.0f} ms",
        ]
        for one in found.all
    ]
    seconds = [[took / 1e3 for took in times] for times in (found.dense_ms, found.plan_ms)]
    return page.Section(
        title="Video by video",
        text=[
            "PSNR and SSIM compare with the dense video of the same noise. They say whether the same sample was drawn, "
            "not whether it is a good one."
        ],
        figure=figures.step_lines(found.noise, *seconds),
        caption="Seconds of the transformer in every step, mean over the videos.",
        table=page.Table(head, rows),
    )


def the_plan(story: Story) -> list[page.Section]:
    """Mode map and a table by noise level."""
    sections = []
    for name, part in story.plan.transformers.items():
        used = [b for b in reversed(range(part.shape[0])) if part.bins[b] < part.dense_above]
        kinds, densities = np.array(part.kinds()), part.densities()
        of_heads = errors_of(story.errors[name], part)
        rows = [_bin_row(part, b, kinds[b], densities[b], of_heads[b]) for b in used]
        text = [f"Steps above noise level {part.dense_above:g} are dense."] if part.dense_above < 1 else []
        if not used:
            text.append("The plan is dense everywhere: nothing sparse was worth its error.")
        panels = [
            search_figures.ModePanel(
                f"noise {_range(part, b)}, density {densities[b].mean():.2f}", kinds[b], densities[b]
            )
            for b in used[:MAX_PANELS]
        ]
        sections.append(
            page.Section(
                title="The mode map" + ("" if name == "transformer" else f", {name.replace('_', ' ')}"),
                text=text,
                figure=search_figures.mode_map(panels) if panels else None,
                caption="Layers from left to right, heads from top to bottom, colours by kind of pattern, "
                "stronger where more is computed.",
                table=page.Table(["noise level", "density", "mean error", "with remainder", "heads"], rows),
            )
        )
    return sections


def _bin_row(part: TransformerPlan, b: int, kinds: Any, densities: Any, of_heads: Any) -> list[str]:
    counts = ", ".join(
        f"{count} {figures.label(str(kind))}" for kind, count in Counter(kinds.ravel().tolist()).most_common()
    )
    share = float(np.mean(~np.isnan(part.betas[b])))
    return [_range(part, b), f"{densities.mean():.3f}", f"{of_heads.mean():.3g}", f"{share:.0%}", counts]


def _range(part: TransformerPlan, b: int) -> str:
    return f"{part.bins[b]:.2f} to {min(part.bins[b + 1], part.dense_above):.2f}"


def what_is_reachable(story: Story) -> list[page.Section]:
    """The front of whole plans."""
    decisions, dense_ms = story.decisions, story.dense_ms
    low = decisions.by_budget(math.inf, "error")[1]["time_ms"]
    high = decisions.by_budget(math.inf, "time")[1]["time_ms"]
    low = max(low, 1e-3 * high)  # all heads skipped take no time
    curve = []
    budgets = {*np.geomspace(low, high, CURVE), *np.linspace(0.7 * high + 0.3 * low, high, CURVE // 2)}
    for budget in sorted(budgets):
        options = decisions.by_budget(float(budget) * (1 + 1e-9), "time")[0]
        options, took = decisions.play(options, dense_ms, guard=True)
        curve.append((story.speedup(took), decisions.mean_error(options)))
    curve = sorted({point for point in curve if point[1] > 0})
    if not curve:
        return []
    planned = story.attention_ms[1]
    points = {"this plan": (story.speedup(planned), story.error)}
    for label, make in _rivals(story, planned).items():
        try:
            rival = make()
        except ValueError:  # this rule does not reach that time
            continue
        error = mean_error(story.errors, story.folder.cost, rival, **_levels(story))
        points[label] = (story.speedup(planned_ms(decisions, rival, dense_ms)), error)
    return [
        page.Section(
            title="What is reachable",
            text=[
                "Every point of the line is a plan that another budget would give; re-planning takes a second."
            ],
            figure=search_figures.plan_front(
                [x for x, _ in curve], [y for _, y in curve], points, story.what
            ),
            caption="Mean relative error of the heads' outputs (lower is better) over predicted speed-up. "
            "Errors of heads do not add up to those of videos: compare rules by real generations.",
        )
    ]


def _rivals(story: Story, planned: float) -> dict[str, Callable[[], SparsePlan]]:
    options = dict(story.options) | {"dense_ms": story.dense_ms, "time_ms": planned * (1 + 1e-6)}
    plain = {key: value for key, value in options.items() if key != "remainder"}
    errors, cost, time_ms = story.errors, story.folder.cost, options["time_ms"]
    has_bias = story.options.get("remainder") != "none"
    return {
        "best uniform pattern": lambda: best_uniform(
            Decisions(errors, cost, dense_above=1.0, **_levels(story)),
            time_ms,
            story.dense_ms,
            remainder=has_bias,
        ),
        "without remainder": lambda: select(errors, cost, **plain, **story.request.allowed, remainder="none"),
    }


def _levels(story: Story) -> dict[str, Any]:
    return {key: value for key, value in story.options.items() if key in ("levels", "weights", "remainder")}


def example_fronts(story: Story) -> list[page.Section]:
    """Error/cost fronts of example heads."""
    noise = _noise(story)
    bin_ = 0 if noise is None else story.plan.transformers[story.plan.names[0]].bin_of(noise) or 0
    heads = [_front(story, *place) for place in example_heads(story.plan, bin_)]
    return [
        page.Section(
            title="Heads and their options",
            text=[
                "Each point is one pattern, with the bias that serves this head best or without a remainder. A "
                "head takes "
                "the option on its grey hull where a step to the right stops paying: one price of time holds "
                "for all heads."
            ],
            figure=search_figures.head_fronts(heads),
            caption="Measured error over predicted time. sparse-vdit explain --why LAYER HEAD says it in words.",
        )
    ]


def _front(story: Story, name: str, bin_: int, layer: int, head: int) -> search_figures.HeadFront:
    errors, part = story.errors[name], story.plan.for_transformer(name)
    remainder = "none" if story.request.objective == "paper" else story.request.remainder
    options = front(
        errors,
        story.folder.cost[name],
        bin_,
        layer,
        head,
        weights=story.request.weights,
        remainder=remainder,
        **story.request.allowed,
    )
    chosen = int(chosen_options(errors, part)[bin_, layer, head])
    candidates = errors.candidates
    kinds = [pattern.family for pattern in candidates.patterns] + ["vertical_stripe"] * len(
        candidates.mass_stripes
    )
    full = next(option.time_ms for option in options if option.number == 2 * candidates.full)
    numbers = [option.number for option in options]
    return search_figures.HeadFront(
        title=f"layer {layer}, head {head}: {figures.label(part.kinds()[bin_][layer][head])}",
        times=[option.time_ms / full for option in options],
        errors=[option.error for option in options],
        families=[kinds[option.number // 2] for option in options],
        remainders=[option.number % 2 == 1 for option in options],
        hull=[i for i, option in enumerate(options) if option.is_on_hull],
        chosen=numbers.index(chosen) if chosen in numbers else None,
    )


def _noise(story: Story) -> float | None:
    """Noise level of the middle sparse step."""
    stock = story.folder.stock
    listed = list(itertools.chain.from_iterable(stock.levels.values())) if stock is not None else []
    return listed[middle_step(story.plan, listed)] if listed else None


def other_prompts(story: Story) -> list[page.Section]:
    """The transfer test."""
    found, judged = story.transfer, story.found
    texts, rows, figure = [], [], None
    if found is not None:
        texts.append(
            "The plan's choices and biases, made on the calibration prompts, have a mean error of "
            f"{found.carried:.4g} on "
            f"prompts that they never saw ({found.own:.4g} on their own). A plan chosen on those prompts, with "
            "the same "
            f"time, would have {found.best:.4g} there: not knowing the prompt costs {percent(found.regret)} of "
            "the error."
        )
        rows += [
            ["error on the calibration prompts", f"{found.own:.4g}"],
            ["error on other prompts", f"{found.carried:.4g}"],
            ["error there of a plan of their own", f"{found.best:.4g}"],
            ["regret", percent(found.regret)],
            ["heads that would keep their kind of pattern", f"{found.same_family:.0%}"],
            ["correlation of the errors, head by head (logarithms)", f"{found.correlation:.3f}"],
        ]
        if len(found.of_heads):
            figure = search_figures.transfer_scatter(
                found.of_heads[:, 0].tolist(), found.of_heads[:, 1].tolist(), _sparse_kinds(story)
            )
    if judged is not None and judged.transfer_db is not None:
        own, others = judged.psnr_db("calibration"), judged.psnr_db("others")
        texts.append(
            f"Generated videos: {decibels(own)} on calibration prompts, {decibels(others)} on others "
            f"({judged.transfer_db:+.1f} dB)."
        )
        rows.append(
            ["PSNR on other prompts minus PSNR on calibration prompts", f"{judged.transfer_db:+.2f} dB"]
        )
    if not texts:
        return []
    return [
        page.Section(
            title="Does it carry over to other prompts?",
            text=texts,
            figure=figure,
            caption="A point for every sparse head: on the line, the prompt makes no difference."
            if figure
            else "",
            table=page.Table(["", ""], rows),
        )
    ]


def _sparse_kinds(story: Story) -> list[str]:
    found: list[str] = []
    for name, part in story.plan.transformers.items():
        errors = story.errors[name]
        sparse = chosen_options(errors, part) != 2 * errors.candidates.full
        found += np.array(part.kinds())[sparse].tolist()
    return found


def what_heads_look_at(story: Story) -> list[page.Section]:
    """Attention maps."""
    if not story.pictures:
        return []
    noise = story.pictures[0].noise
    return [
        page.Section(
            title="What the heads look at",
            figure=figures.attention_maps(head_maps(story.plan, story.pictures)),
            caption=f"Attention at noise level {noise:.2f} of the first calibration prompt, in logarithmic "
            "colours over four "
            "decades; rows are queries. Each map is in its head's own order of tokens, and the computed blocks "
            "are outlined.",
        )
    ]


SECTIONS: Sequence[Callable[[Story], list[page.Section]]] = (
    predicted_and_achieved,
    the_plan,
    what_is_reachable,
    example_fronts,
    other_prompts,
    what_heads_look_at,
)
