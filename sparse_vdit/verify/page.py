"""The report of a search: everything in its folder on one page, without the model.

Sections that lack their data are left out. Figures: `report/search_figures.py`; the page: `report/page.py`.
"""

from __future__ import annotations

import datetime
import importlib.util
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparse_vdit.plan import SparsePlan, TransformerPlan
from sparse_vdit.report import figures, page, search_figures, video
from sparse_vdit.report.files import replacing
from sparse_vdit.search import HeadErrors
from sparse_vdit.search.decisions import Decisions
from sparse_vdit.search.front import front
from sparse_vdit.search.select import select, uniform

from .clips import Pairs, load_clips, page_clips
from .folder import REPORT, Folder
from .heads import Picture, example_heads, head_maps, load_pictures, middle_step
from .judge import Verification
from .request import Request, request_of
from .transfer import Transfer, chosen_options, errors_of, mean_error, planned_ms, transfer

CURVE = 12  # points of the plan's front
MAX_PANELS = 12


@dataclass
class Story:
    """What the page is made of.

    Args:
        folder: of the search.
        progress: told what is done next.
    """

    folder: Folder
    progress: Callable[[str], object] = lambda _: None

    @cached_property
    def plan(self) -> SparsePlan:
        """The plan."""
        return self.folder.plan

    @cached_property
    def request(self) -> Request:
        """How the plan was asked for."""
        return request_of(self.plan)

    @cached_property
    def errors(self) -> dict[str, HeadErrors]:
        """The recording in the plan's bins, joined where the plan has fewer."""
        found = {}
        for name, part in self.plan.transformers.items():
            if name not in self.folder.errors:
                raise ValueError(
                    f"report: the errors have no {name}, expected those that the plan was chosen on"
                )
            recorded = self.folder.errors[name]
            found[name] = recorded if recorded.bins == part.bins else recorded.rebinned(part.bins)
        return found

    @cached_property
    def options(self) -> dict[str, Any]:
        """Arguments for rules and fronts: those of the plan."""
        stock = self.folder.stock
        found: dict[str, Any] = {"weights": self.request.weights}
        if self.request.objective != "paper":
            found["remainder"] = self.request.remainder
        if stock is not None:
            found["levels"] = stock.levels
        return found

    @cached_property
    def dense_ms(self) -> float | None:
        """Attention of a dense step as measured."""
        return None if self.folder.stock is None else self.folder.stock.attention_ms

    @cached_property
    def decisions(self) -> Decisions:
        """What could be chosen."""
        return Decisions(self.errors, self.folder.cost, **self.options)

    @cached_property
    def attention_ms(self) -> tuple[float, float]:
        """Attention of a step, dense and predicted under the plan."""
        return self.decisions.dense_attention_ms(self.dense_ms), planned_ms(self.decisions, self.plan, self.dense_ms)

    @cached_property
    def rest_ms(self) -> float:
        """The step without attention; 0 where it was not measured."""
        return 0.0 if self.folder.stock is None else self.folder.stock.rest_ms

    def speedup(self, attention_ms: float) -> float:
        """Predicted for an attention time."""
        return (self.attention_ms[0] + self.rest_ms) / (attention_ms + self.rest_ms)

    @property
    def what(self) -> str:
        """What the predicted speed-ups are of."""
        return "speed-up of attention" if self.folder.stock is None else "speed-up of a step"

    @cached_property
    def error(self) -> float:
        """Mean error of the plan."""
        options = {
            key: value for key, value in self.options.items() if key in ("levels", "weights", "remainder")
        }
        return mean_error(self.errors, self.folder.cost, self.plan, **options)

    @cached_property
    def found(self) -> Verification | None:
        """What was achieved."""
        return self.folder.verification

    @cached_property
    def transfer(self) -> Transfer | None:
        """How the plan does on other prompts."""
        others = self.folder.others
        if others is None:
            return None
        binned = {
            name: part if part.bins == self.errors[name].bins else _in_bins(part, self.errors[name])
            for name, part in others.items()
        }
        options = dict(self.options) | {"dense_ms": self.dense_ms}
        return transfer(self.errors, binned, self.folder.cost, self.plan, **options)

    @cached_property
    def clips(self) -> Pairs:
        """Small copies of the judged videos."""
        return load_clips(self.folder.folder, self.plan)

    @cached_property
    def pictures(self) -> list[Picture]:
        """Attention maps of example heads."""
        return load_pictures(self.folder.folder, self.plan)


def write_report(folder: Folder, progress: Callable[[str], object] | None = None) -> Path:
    """Writes `report.html` into the folder, and its figures as PNG; the old page or the new one.

    Args:
        folder: of a search with a plan.
        progress: told what is done next.

    Returns:
        The page.
    """
    story = Story(folder, progress or (lambda _: None))
    made = build_page(story)
    out = folder.folder
    for number, section in enumerate(made.sections):
        if section.figure is not None:
            with replacing(out / "figures" / f"{number:02d}.png") as draft:
                draft.write_bytes(section.figure.png)
    page.write(out / REPORT, made)
    return out / REPORT


def build_page(story: Story) -> page.Page:
    """The page."""
    sections = []
    for make in SECTIONS:
        story.progress(make.__name__.strip("_").replace("_", " "))
        sections += make(story)
    found, predicted = story.found, story.speedup(story.attention_ms[1])
    clips = page_clips(story.clips, found) if found is not None else []
    frames, aspect = _shape(story.clips)
    return page.Page(
        title="sparse-vdit search",
        headline=_headline(story, predicted),
        lead=_lead(story),
        tiles=_tiles(story, predicted),
        frames=frames,
        fps=video.FPS,
        clips=clips,
        sections=sections,
        notes=_notes(story),
        facts=_facts(story),
        footer=f"plan {story.plan.hash}",
        aspect=aspect,
    )


# ---- head of the page ----


def _headline(story: Story, predicted: float) -> str:
    if story.found is None:
        return f"A plan that should be {predicted:.2f} times faster"
    if story.found.speedup < 1:
        return f"A plan that takes {1 / story.found.speedup:.2f} times as long as dense attention"
    return f"The same videos, {story.found.speedup:.2f} times faster"


def _lead(story: Story) -> str:
    model = next(iter(story.errors.values())).model
    options = next(iter(story.errors.values())).candidates
    count = int(options.count + options.takes_remainder.sum())
    samples = len(next(iter(story.folder.errors.values())).provenance.get("samples", []))
    return (
        f"{count} options for each of {model.layers} × {model.heads} heads of {model.transformer_class} were measured on "
        f"{samples} calibration prompt{'s' * (samples != 1)}; one price of time chose among them."
    )


def _tiles(story: Story, predicted: float) -> list[page.Tile]:
    found = story.found
    tiles = [page.Tile(f"{predicted:.2f}×", "predicted", story.what)]
    if found is not None:
        psnr = found.psnr_db()
        tiles = [
            page.Tile(f"{found.speedup:.2f}×", "achieved", f"{predicted:.2f}× was predicted"),
            page.Tile(_db(psnr), "PSNR", f"against dense, mean of {len(found.all)} videos"),
            page.Tile(f"{found.ssim():.3f}", "SSIM", "Gaussian 11×11 window"),
        ]
    tiles.append(
        page.Tile(f"{story.plan.density():.0%}", "density", "query-key pairs computed in a sparse step")
    )
    tiles.append(page.Tile(f"{story.error:.2g}", "mean error", "of the heads' outputs, relative, squared"))
    if story.transfer is not None:
        tiles.append(
            page.Tile(
                f"{story.transfer.regret:+.1%}",
                "transfer",
                "error on other prompts, against a plan of their own",
            )
        )
    return tiles


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _shape(pairs: Pairs) -> tuple[int, float]:
    if not pairs:
        return 1, 1.0
    frames, high, wide, _ = next(iter(pairs.values()))[0].shape
    return frames, wide / high


# ---- sections ----


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
        took = float(np.mean(found.plan_ms))
        rows.append(("achieved", took, found.speedup))
        rows[0] = ("dense", float(np.mean(found.dense_ms)), None)
        cells.append(
            ["transformer step, dense, in the verification", f"{np.mean(found.dense_ms):.1f} ms", ""]
        )
        cells.append(["transformer step under the plan, achieved", f"{took:.1f} ms", f"{found.speedup:.2f}×"])
    sections = [
        page.Section(
            title="Predicted and achieved",
            text=text,
            figure=search_figures.achieved_bars(rows),
            caption="Milliseconds of a denoising step, mean over all steps, warm-up included."
            + ("" if found is not None else " Nothing was generated under this plan yet."),
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
            one.prompt[:60] + ("…" if len(one.prompt) > 60 else ""), str(one.seed), _db(one.psnr_db), _db(one.psnr_worst_frame_db),
            f"{one.ssim:.3f}", f"{one.dense_ms:.0f} ms", f"{one.plan_ms:.0f} ms",
        ]
        for one in found.all
    ]  # fmt: skip
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
                caption="Layers from left to right, heads from top to bottom, colours by kind of pattern, stronger where "
                "more is computed.",
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
    curve = []
    for budget in np.geomspace(low, max(high, low * 1.0001), CURVE):
        options = decisions.by_budget(float(budget) * (1 + 1e-9), "time")[0]
        options, took = decisions.play(options, dense_ms, guard=True)
        curve.append((story.speedup(took), decisions.mean_error(options)))
    curve = sorted(set(curve))
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
            figure=search_figures.plan_front([x for x, _ in curve], [y for _, y in curve], points, story.what),
            caption="Mean relative error of the heads' outputs (lower is better) over predicted speed-up. Errors of heads do "
            "not add up to those of videos: compare rules by real generations.",
        )
    ]


def _rivals(story: Story, planned: float) -> dict[str, Callable[[], SparsePlan]]:
    options = dict(story.options) | {"dense_ms": story.dense_ms, "time_ms": planned * (1 + 1e-6)}
    plain = {key: value for key, value in options.items() if key != "remainder"}
    errors, cost = story.errors, story.folder.cost
    return {
        "best uniform pattern": lambda: uniform(errors, cost, **options),
        "without remainder": lambda: select(errors, cost, **plain, remainder="none"),
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
                "Each point is one pattern, with the bias that serves this head best or without a remainder. A head takes "
                "the option on its grey hull where a step to the right stops paying: one price of time holds for all heads."
            ],
            figure=search_figures.head_fronts(heads),
            caption="Measured error over predicted time. sparse-vdit explain --why LAYER HEAD says it in words.",
        )
    ]


def _front(story: Story, name: str, bin_: int, layer: int, head: int) -> search_figures.HeadFront:
    errors, part = story.errors[name], story.plan.for_transformer(name)
    remainder = "none" if story.request.objective == "paper" else story.request.remainder
    options = front(
        errors, story.folder.cost[name], bin_, layer, head, weights=story.request.weights, remainder=remainder
    )
    chosen = int(chosen_options(errors, part)[bin_, layer, head])
    candidates = errors.candidates
    kinds = [pattern.kind for pattern in candidates.patterns] + ["vertical_stripe"] * len(
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
            f"The plan's choices and biases, made on the calibration prompts, have a mean error of {found.carried:.4g} on "
            f"prompts that they never saw ({found.own:.4g} on their own). A plan chosen on those prompts, with the same "
            f"time, would have {found.best:.4g} there: not knowing the prompt costs {found.regret:+.1%} of the error."
        )
        rows += [
            ["error on the calibration prompts", f"{found.own:.4g}"],
            ["error on other prompts", f"{found.carried:.4g}"],
            ["error there of a plan of their own", f"{found.best:.4g}"],
            ["regret", f"{found.regret:+.1%}"],
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
            f"Generated videos: {_db(own)} on calibration prompts, {_db(others)} on others ({judged.transfer_db:+.1f} dB)."
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
            caption=f"Attention at noise level {noise:.2f} of the first calibration prompt, in logarithmic colours over four "
            "decades; rows are queries. Each map is in its head's own order of tokens, and the computed blocks are outlined.",
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


# ---- foot of the page ----


def _notes(story: Story) -> list[str]:
    first = next(iter(story.errors.values()))
    notes = [
        f"Errors were measured on {first.rows} sampled query rows per head and call, not on all rows.",
        "A predicted time is that of the attention kernel alone on this machine, played out over its workers, plus the "
        "measured rest of a step.",
    ]
    if story.found is None:
        notes.append(
            "Nothing was generated under this plan yet: sparse-vdit plan --verify says what it achieves."
        )
    if story.found is not None and story.found.transfer_db is None and story.transfer is None:
        notes.append("All judged prompts are those of the calibration: --others names a file of others.")
    if first.provenance.get("follow") == "choice":
        notes.append(
            "The recorder followed its own choices: these errors depend on them, and a new plan is a guess."
        )
    return notes


def _facts(story: Story) -> list[tuple[str, str]]:
    first = next(iter(story.errors.values()))
    model, geometry, candidates = first.model, first.candidates.geometry, first.candidates
    hardware = next(iter(story.folder.cost.values())).hardware
    asked = story.plan.provenance.get("asked")
    facts = [
        ("model", f"{model.transformer_class}, {model.layers} layers × {model.heads} heads × {model.head_dim}"),
        ("tokens", f"{geometry.tokens:,} = {geometry.frames} × {geometry.height} × {geometry.width} video, "
                   f"{geometry.prefix + geometry.suffix} others; blocks {geometry.block_q} × {geometry.block_k}"),
        ("options", f"{candidates.count} candidates, {int(candidates.takes_remainder.sum())} of them with a fitted remainder too"),
        ("recorded", f"{', '.join(str(len(part.bins) - 1) for part in story.folder.errors.values())} noise bins, "
                     f"{first.rows} rows, {int(first.calls.sum())} attention calls"),
        ("asked for", ", ".join(f"{key} {_short(value)}" for key, value in asked.items() if key != "found" and value is not None)
                      if isinstance(asked, dict) else "unknown"),
        ("kernel", f"{hardware.engine}, {hardware.workers} workers, batch {next(iter(story.folder.cost.values())).batch}"),
    ]  # fmt: skip
    stock = story.folder.stock
    if stock is not None and stock.settings:
        facts.append(
            ("settings", ", ".join(f"{key} {_short(value)}" for key, value in stock.settings.items()))
        )
    facts.append(("made", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")))
    return facts


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 120 else text[:119] + "…"


def _in_bins(part: HeadErrors, like: HeadErrors) -> HeadErrors:
    try:
        return part.rebinned(like.bins)
    except ValueError:
        raise ValueError(
            f"report: the other prompts were recorded in bins {list(part.bins)}, expected those of the plan, {list(like.bins)}"
        ) from None


PACKAGES = {"jinja2": "jinja2", "matplotlib": "matplotlib", "av": "av", "PIL": "pillow"}


def check_packages() -> None:
    """Finds out before the work what would stop it at the end.

    Raises:
        ModuleNotFoundError: `report: jinja2 is not installed, expected pip install 'sparse-vdit[report]'`.
    """
    for name, package in PACKAGES.items():
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"report: {package} is not installed, expected pip install 'sparse-vdit[report]'"
            )
