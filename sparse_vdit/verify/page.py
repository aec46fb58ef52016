"""The report of a search: everything in its folder on one page, without the model.

The page: `report/page.py`; its sections: `sections.py`.
"""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_vdit.report import page, video
from sparse_vdit.report.files import replacing

from .clips import Pairs, page_clips
from .folder import REPORT, Folder
from .sections import SECTIONS
from .story import Story, decibels, percent


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
    clips = page_clips(story.clips, story.found) if story.found is not None else []
    _ = (
        story.plan,
        story.errors,
        story.folder.cost,
        story.pictures,
        story.folder.others,
    )  # bad files end it at once
    sections = []
    for make in SECTIONS:
        story.progress(make.__name__.strip("_").replace("_", " "))
        sections += make(story)
    predicted = story.speedup(story.attention_ms[1])
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
        f"{count} options for each of {model.layers} × {model.heads} heads of {model.transformer_class} were "
        f"measured on {samples} calibration prompt{'s' * (samples != 1)}; one price of time chose among them."
    )


def _tiles(story: Story, predicted: float) -> list[page.Tile]:
    found = story.found
    tiles = [page.Tile(f"{predicted:.2f}×", "predicted", story.what)]
    if found is not None:
        psnr = found.psnr_db()
        tiles = [
            page.Tile(f"{found.speedup:.2f}×", "achieved", f"{predicted:.2f}× was predicted"),
            page.Tile(decibels(psnr), "PSNR", f"against dense, mean of {len(found.all)} videos"),
            page.Tile(f"{found.ssim():.3f}", "SSIM", "Gaussian 11×11 window"),
        ]
    tiles.append(
        page.Tile(f"{story.plan.density():.0%}", "density", "query-key pairs computed in a sparse step")
    )
    tiles.append(page.Tile(f"{story.error:.2g}", "mean error", "of the heads' outputs, relative, squared"))
    if story.transfer is not None:
        tiles.append(
            page.Tile(
                percent(story.transfer.regret),
                "transfer",
                "error on other prompts, against a plan of their own",
            )
        )
    return tiles


def _shape(pairs: Pairs) -> tuple[int, float]:
    if not pairs:
        return 1, 1.0
    frames, high, wide, _ = next(iter(pairs.values()))[0].shape
    return frames, wide / high


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
    asked = story.plan.provenance.get("asked")
    cost = next(iter(story.folder.cost.values()))
    others = geometry.prefix + geometry.suffix
    bins = ", ".join(str(len(part.bins) - 1) for part in story.folder.errors.values())
    facts = [
        (
            "model",
            f"{model.transformer_class}, {model.layers} layers × {model.heads} heads × {model.head_dim}",
        ),
        (
            "tokens",
            f"{geometry.tokens:,} = {geometry.frames} × {geometry.height} × {geometry.width} video, {others} others; "
            f"blocks {geometry.block_q} × {geometry.block_k}",
        ),
        (
            "options",
            f"{candidates.count} candidates, {int(candidates.takes_remainder.sum())} also with a fitted remainder",
        ),
        ("recorded", f"{bins} noise bins, {first.rows} rows, {int(first.calls.sum())} attention calls"),
        ("asked for", _listed(asked)),
        ("kernel", f"{cost.hardware.engine}, {cost.hardware.workers} workers, batch {cost.batch}"),
    ]
    stock = story.folder.stock
    if stock is not None and stock.settings:
        facts.append(("settings", _listed(stock.settings)))
    facts.append(("made", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")))
    return facts


def _listed(values: Any) -> str:
    if not isinstance(values, dict):
        return "unknown"
    named = {key: value for key, value in values.items() if key != "found" and value is not None}
    return ", ".join(f"{key} {_short(value)}" for key, value in named.items()) or "nothing"


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 120 else text[:119] + "…"


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
