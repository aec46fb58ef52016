"""What the search takes, and how far a sample of rows can be trusted: four small tables of `bench.py search`.

    probe   errors of all candidates on 64 query rows, as a share of one dense attention call
    ranks   the same errors on 64 rows and on 1,024: do they put heads, and candidates, in the same order?
    select  `_C.select_budget` over 100,000 decisions of 200 options
    replan  `select`, from recorded errors and prices to a plan

The model is the embedded one, listened to by the search's own recorder. What the numbers mean: README.md.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import baselines
import cases
import numpy as np
import timing
from numpy.typing import NDArray

from sparse_vdit import _C, Geometry, LayerPlan, Pattern, attention, observe
from sparse_vdit.demo.pipeline import MODEL, generate, geometry, load, noise_levels
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.search import Candidates, HeadErrors, Recorder, ladder
from sparse_vdit.search.calibration import known_constants
from sparse_vdit.search.cost import CostModel
from sparse_vdit.search.probe import BETAS, ROWS, ProbeResult, fit_beta, probe, sample_rows
from sparse_vdit.search.select import select

DTYPE, HEAD_DIM, BLOCK = "float32", 64, 64
#: The embedded model's geometry with its 2 heads; 8,192 tokens of video with 8.
PROBED = ((Geometry(16, 16, 16, prefix=8, block_q=64, block_k=64), 2), (cases.QUICK, 8))
PROBE_SECONDS = (4.0, 12.0)  # of rounds, quick or not; three rounds in any case

PROMPT = "yellow square moving down, slow on plain grey ground"
SEED = 8001
BINS = (0.0, 0.3, 0.6, 1.0)
MANY = 1024  # rows that stand for all
STEPS = (3, 4)  # of the generation, quick or not; all but the first, which is nearly pure noise, are compared

DECISIONS, OPTIONS = 100_000, 200
SELECT_SECONDS = 2.0

SPEEDUP, REST = 1.6, 0.4  # of the whole step; the step without attention, over dense attention
REPLAN_SECONDS = 1.0
#: About the size of CogVideoX-5B at 81 frames of 768 x 1360 (version 1.5: pairs of frames, 226 tokens of text).
LARGE = Geometry(11, 48, 85, prefix=226, block_q=128, block_k=64)
LARGE_MODEL = ModelIdentity("CogVideoXTransformer3DModel", layers=42, heads=48, head_dim=64)
LARGE_BINS, LARGE_STEPS = 10, 50
#: Microseconds for 64 x 64 tokens, round numbers: prices that make a choice real, and the same on every machine.
PRICES = {
    "launch_us": 30.0, "head_us": 2.0, "pack_us": 1.0, "reorder_us": 4.0, "mean_us": 0.3, "item_us": 1.0,
    "run_us": 0.2, "full_us": 12.0, "pooled_us": 1.5, "tile_us": 0.3, "zero_us": 0.5,
}  # fmt: skip

Row = dict[str, Any]
Array = NDArray[Any]
Clock = Callable[[], float]


# ---- probe: a share of a dense call ----


@cache
def only_full(layout: Geometry) -> Candidates:
    """What the recorder probes once per bin and layer, for the attention mass that chooses mass stripes."""
    return Candidates(layout, (Pattern.full(),))


def stripes_of(candidates: Candidates, mass: Array) -> NDArray[np.int32] | None:
    """Key blocks by falling mass, int32 [H, M]; None without mass stripes."""
    if not candidates.stripe_blocks:
        return None
    return np.argsort(-mass, axis=-1, kind="stable")[:, : candidates.stripe_blocks].astype(np.int32)


def probe_variants(candidates: Candidates, heads: int) -> dict[str, Callable[[], object]]:
    """A probe of random q, k, v, the mass pass, and the dense calls of torch and of our own kernel."""
    layout = candidates.geometry
    q, k, v = baselines.tensors(DTYPE, heads, layout.tokens, HEAD_DIM)
    rows = sample_rows(layout, ROWS, SEED)
    stripes = stripes_of(candidates, probe(only_full(layout), q, k, v, rows).mass)
    full = LayerPlan(layout, [Pattern.full()] * heads)
    full.items()
    return {
        "probe": partial(probe, candidates, q, k, v, rows, stripes=stripes),
        "mass": partial(probe, only_full(layout), q, k, v, rows),
        "torch": baselines.sdpa(q, k, v),
        "ours": partial(attention, q.numpy(), k.numpy(), v.numpy(), layer=full),
    }


def spread(name: str, values: Sequence[float] | Array) -> Row:
    """Median, 20th and 80th percentile as `name`, `name_p20`, `name_p80`."""
    found = np.percentile(values, [50, 20, 80])
    return {name + end: float(value) for end, value in zip(("", "_p20", "_p80"), found, strict=True)}


def probe_rows(options: Any) -> Iterator[Row]:
    """A row per geometry; shares are those of the same round."""
    for layout, heads in PROBED[: 1 if options.quick else None]:
        candidates = ladder(layout)
        variants = probe_variants(candidates, heads)
        rounds = timing.interleave(variants, PROBE_SECONDS[not options.quick], DTYPE, clock=options.clock)
        ms = {name: np.array(found) for name, found in rounds.ms.items()}
        row: Row = {"tokens": layout.tokens, "heads": heads, "head_dim": HEAD_DIM, "dtype": DTYPE}
        row |= {"candidates": candidates.count, "rows": ROWS, "rounds": len(ms["probe"])}
        for name in variants:
            row |= spread(f"{name}_ms", ms[name])
        for name in ("torch", "ours"):
            row |= spread(f"of_{name}", ms["probe"] / ms[name])
        yield row


# ---- ranks: few rows against many ----


def ranks(values: Array) -> NDArray[np.float64]:
    """1, 2, ... by rising value; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]


def spearman(first: Array, second: Array) -> float:
    """Rank correlation; 0 where one side has a single value, which puts nothing in order."""
    a, b = (found - found.mean() for found in (ranks(first), ranks(second)))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0


def relative_errors(result: ProbeResult, asked: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Squared errors over the head's energy, [2, H, asked candidates]: plain, and with a bias fitted to these rows."""
    fitted, _ = fit_beta(result.plain, result.curve)
    return (np.stack([result.plain, fitted]) / result.energy[:, None])[..., asked]


@dataclass
class Ear:
    """What `observe` calls: the search's recorder, and at some steps every candidate on few and on many rows.

    Attributes:
        recorder: of the search, on every step.
        compared: steps.
        heard: step -> noise level, and [2 samples, 2 options, H, C] of every layer.
    """

    recorder: Recorder
    compared: frozenset[int]
    heard: dict[int, tuple[float, list[NDArray[np.float64]]]] = field(default_factory=dict)

    def __call__(self, step: int, noise: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> Any:
        """One call of attention; the dense output stands."""
        if step in self.compared:
            self.heard.setdefault(step, (noise, []))[1].append(self._both(step, layer, q, k, v))
        return self.recorder(step, noise, layer, q, k, v, dense)

    def _both(self, step: int, layer: int, q: Any, k: Any, v: Any) -> NDArray[np.float64]:
        candidates = self.recorder.candidates
        few, many = (
            sample_rows(candidates.geometry, count, (SEED, sample, step, layer))
            for sample, count in enumerate((ROWS, MANY))
        )
        stripes = stripes_of(candidates, probe(only_full(candidates.geometry), q, k, v, few).mass)
        found = [probe(candidates, q, k, v, rows, stripes=stripes) for rows in (few, many)]
        return np.stack([relative_errors(result, candidates.takes_remainder) for result in found])

    def errors(self) -> dict[int | None, tuple[float | None, NDArray[np.float64]]]:
        """Step -> noise level and errors [2 samples, 2 options, all heads, C]; None -> their mean over the steps."""
        found: dict[int | None, tuple[float | None, NDArray[np.float64]]] = {
            step: (noise, np.concatenate(layers, axis=2)) for step, (noise, layers) in self.heard.items()
        }
        mean = np.mean([errors for _, errors in found.values()], axis=0)
        return found | {None: (None, mean)}


def listen(options: Any) -> tuple[Ear, HeadErrors, tuple[float, ...]]:
    """One stock generation of the embedded model.

    Returns:
        What was compared, the recorded errors, and the noise level of every step.
    """
    pipe, steps = load(MODEL), STEPS[not options.quick]
    recorder = Recorder(pipe.transformer, ladder(geometry(pipe, BLOCK)), BINS, rows=ROWS, seed=SEED)
    ear = Ear(recorder, frozenset(range(1, steps)))
    with observe(pipe, ear), recorder.watching(pipe), recorder.prompt(0):
        generate(pipe, PROMPT, SEED, steps)
    found = recorder.errors()["transformer"].without_empty_bins()
    return ear, found, noise_levels(pipe, steps)


def rank_row(few: NDArray[np.float64], many: NDArray[np.float64], names: Sequence[str]) -> Row:
    """Correlations between two tables [all heads, C]: over heads for each candidate, over candidates in each head."""
    of_candidates = [spearman(few[:, c], many[:, c]) for c in range(few.shape[1])]
    of_heads = [spearman(few[h], many[h]) for h in range(few.shape[0])]
    return {
        "all_heads": len(of_heads),
        "candidates": len(of_candidates),
        "rows": ROWS,
        "other_rows": MANY,
        "over_heads_mean": float(np.mean(of_candidates)),
        "over_heads_least": min(of_candidates),
        "least_at": names[int(np.argmin(of_candidates))],
        "in_head_mean": float(np.mean(of_heads)),
        "in_head_least": min(of_heads),
    }


def rank_rows(ear: Ear) -> Iterator[Row]:
    """A row per step and kind of option, and for the mean over the steps."""
    candidates = ear.recorder.candidates
    names = [candidates.name(int(c)) for c in np.flatnonzero(candidates.takes_remainder)]
    for step, (noise, (few, many)) in ear.errors().items():
        for number, option in enumerate(("plain", "remainder")):
            about = {"step": step, "noise": noise, "option": option}
            yield about | rank_row(few[number], many[number], names)


# ---- select: many decisions at once ----


def tables(kind: str) -> dict[str, Any]:
    """Arguments of `_C.select_budget`: "random", or "hull" with every option of every decision on its hull."""
    rng = np.random.default_rng(SEED)
    if kind == "hull":
        times = np.arange(1.0, OPTIONS + 1)
        curve = (1 - np.arange(OPTIONS) / OPTIONS) ** 2
        errors = (rng.uniform(0.5, 1.5, (DECISIONS, 1)) * curve).astype(np.float32)
    else:
        times = rng.uniform(1.0, float(OPTIONS), OPTIONS)
        errors = rng.random((DECISIONS, OPTIONS), dtype=np.float32)
    least, most = DECISIONS * times.min(), float(times[errors.argmin(axis=1)].sum())
    return {
        "errors": errors,
        "times": times[None],
        "time_group": np.zeros(DECISIONS, np.int32),
        "weights": rng.uniform(0.0, 2.0, DECISIONS),
        "repeats": np.ones(DECISIONS),
        "budget": (least + most) / 2,
    }


def select_rows(options: Any) -> Iterator[Row]:
    """Least error in half of the time between the fastest and the best choice, on one thread."""
    made = {kind: tables(kind) for kind in ("random", "hull")}
    _C.set_threads(1)
    try:
        variants = {kind: partial(_C.select_budget, **arguments) for kind, arguments in made.items()}
        rounds = timing.interleave(variants, SELECT_SECONDS, clock=options.clock)
        for kind, arguments in made.items():
            found = _C.select_budget(**arguments)
            row = {"tables": kind, "decisions": DECISIONS, "options": OPTIONS, "threads": 1}
            gap = found["error"] / found["bound"] - 1 if found["bound"] > 0 else None
            yield row | spread("ms", rounds.ms[kind]) | {"rounds": len(rounds.ms[kind]), "above_bound": gap}
    finally:
        _C.set_threads(options.threads)


# ---- replan: from errors to a plan ----


def prices(candidates: Candidates, heads: int) -> CostModel:
    """Made-up prices in the proportions of a CPU core."""
    layout = candidates.geometry
    known = known_constants(DTYPE, HEAD_DIM, layout.block_q, layout.block_k)
    pair = layout.block_q * layout.block_k / 64**2
    return CostModel(
        known.replaced(**PRICES | {"full_us": PRICES["full_us"] * pair}), candidates, heads=heads
    )


def synthetic_errors(model: ModelIdentity, candidates: Candidates, bins: int) -> HeadErrors:
    """Errors that fall with density, faster with a bias near one that differs by head, which likes some patterns."""
    rng = np.random.default_rng(SEED)
    cells = (bins, model.layers, model.heads)
    energy = rng.uniform(1, 20, cells).astype(np.float32)
    likes = rng.uniform(0.02, 1, (*cells, candidates.count)) * np.exp(-4 * candidates.density)
    plain = energy[..., None] * likes.astype(np.float32)
    shape = 0.3 + 0.1 * np.abs(BETAS - rng.uniform(-2, 3, (*cells, 1)))
    curve = plain[..., None] * shape.astype(np.float32)[..., None, :]
    for number in np.flatnonzero(~candidates.takes_remainder):
        plain[..., number] = 0 if number == candidates.full else energy
        curve[..., number, :] = plain[..., number, None]
    order = np.argsort(rng.random((*cells, candidates.geometry.key_blocks), dtype=np.float32))
    return HeadErrors(
        model, candidates, tuple(number / bins for number in range(bins + 1)), "relative", rows=ROWS, seed=SEED,
        plain=plain, curve=curve, energy=energy, calls=np.ones(cells[:2], np.int64),
        stripes=order[..., : candidates.stripe_blocks].astype(np.int32),
    )  # fmt: skip


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences the package: `left_out` of a row says what a warning would."""
    logger = logging.getLogger("sparse_vdit")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def replan_row(case: str, errors: HeadErrors, levels: Sequence[float], clock: Clock) -> Row:
    """The first plan, whose candidates get their visit lists on the way, and later ones."""
    cost = prices(errors.candidates, errors.model.heads)
    rest_ms = REST * cost.dense_layer_ms * errors.model.layers
    run = partial(select, errors, cost, speedup=SPEEDUP, rest_ms=rest_ms, levels=levels)
    ms: list[float] = []
    with without_warnings():
        while len(ms) < 3 or sum(ms[1:]) < 1e3 * REPLAN_SECONDS:
            start = clock()
            plan = run()
            ms.append(1e3 * (clock() - start))
    row = {
        "case": case,
        "tokens": errors.candidates.geometry.tokens,
        "layers": errors.model.layers,
        "heads": errors.model.heads,
        "bins": len(errors.bins) - 1,
        "candidates": errors.candidates.count,
        "errors_mb": errors.nbytes / 1e6,
        "first_ms": ms[0],
    }
    about = {"patterns": len(plan.sole.patterns), "left_out": plan.provenance.get("left_out")}
    return row | spread("ms", ms[1:]) | {"rounds": len(ms) - 1} | about


def replan_rows(errors: HeadErrors, levels: Sequence[float], options: Any) -> Iterator[Row]:
    """The embedded model's recorded errors; random ones of a large model."""
    yield replan_row("embedded", errors, levels, options.clock)
    if not options.quick:
        made = synthetic_errors(LARGE_MODEL, ladder(LARGE), LARGE_BINS)
        yield replan_row("large", made, np.linspace(0.999, 0.02, LARGE_STEPS).tolist(), options.clock)


# ---- rows and tables ----

#: Key of a row -> header and format of its column.
Columns = Mapping[str, tuple[str, str]]


def _spread_columns(name: str, title: str, form: str) -> dict[str, tuple[str, str]]:
    return {name: (title, form), f"{name}_p20": ("p20", form), f"{name}_p80": ("p80", form)}


COLUMNS: dict[str, Columns] = {
    "probe": {"tokens": ("tokens", "d"), "heads": ("H", "d"), "candidates": ("cand.", "d")}
    | _spread_columns("probe_ms", "probe ms", ".2f")
    | {"mass_ms": ("mass", ".2f"), "torch_ms": ("torch", ".1f"), "ours_ms": ("ours", ".1f")}
    | _spread_columns("of_torch", "/torch", ".3f")
    | _spread_columns("of_ours", "/ours", ".3f"),
    "ranks": {
        "step": ("step", "d"),
        "noise": ("noise", ".2f"),
        "option": ("option", "s"),
        "all_heads": ("heads", "d"),
        "candidates": ("cand.", "d"),
        "over_heads_mean": ("over heads", ".3f"),
        "over_heads_least": ("least", ".3f"),
        "in_head_mean": ("in a head", ".3f"),
        "in_head_least": ("least", ".3f"),
        "least_at": ("least over heads at", "s"),
    },
    "select": {"tables": ("tables", "s"), "decisions": ("decisions", "d"), "options": ("options", "d")}
    | _spread_columns("ms", "ms", ".0f")
    | {"above_bound": ("above bound", ".1e")},
    "replan": {
        "case": ("case", "s"),
        "tokens": ("tokens", "d"),
        "layers": ("layers", "d"),
        "heads": ("heads", "d"),
        "bins": ("bins", "d"),
        "candidates": ("cand.", "d"),
        "errors_mb": ("MB", ".1f"),
        "first_ms": ("first ms", ".0f"),
    }
    | _spread_columns("ms", "again ms", ".0f")
    | {"patterns": ("patterns", "d"), "left_out": ("left out", "s")},
}
TITLES = {
    "probe": f"a probe of {ROWS} rows over a dense call",
    "ranks": f"rank correlation of errors on {ROWS} and on {MANY} rows",
    "select": "select_budget, one thread",
    "replan": f"select(speedup={SPEEDUP})",
}


def cell(value: Any, form: str) -> str:
    """A value as printed; `-` for None."""
    return "-" if value is None else format(value, form)


def table(part: str, rows: Sequence[Row]) -> str:
    """Title, header and a line per row; numbers to the right."""
    columns = COLUMNS[part]
    texts = [[title for title, _ in columns.values()]]
    texts += [[cell(row[key], form) for key, (_, form) in columns.items()] for row in rows]
    widths = [max(len(line[place]) for line in texts) for place in range(len(columns))]
    signs = ["<" if form == "s" else ">" for _, form in columns.values()]
    lines = [
        "  ".join(
            f"{text:{sign}{width}}" for text, sign, width in zip(line, signs, widths, strict=True)
        ).rstrip()
        for line in texts
    ]
    return "\n".join([TITLES[part], *(f"  {line}" for line in lines)])


def search_parts(options: Any) -> Iterator[tuple[str, list[Row]]]:
    """Names and rows of the parts, as they are measured."""
    yield "probe", list(probe_rows(options))
    ear, errors, levels = listen(options)
    yield "ranks", list(rank_rows(ear))
    yield "select", list(select_rows(options))
    yield "replan", list(replan_rows(errors, levels, options))


def measure_search(options: Any, common: Mapping[str, Any]) -> list[Row]:
    """Measures and prints all parts.

    Args:
        options: quick, threads and clock of the command line.
        common: device, isa, threads, commit and versions.

    Returns:
        The rows; what they hold differs by `part`.
    """
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found: list[Row] = []
    for part, rows in search_parts(options):
        print(table(part, rows), flush=True)
        found += [{"bench": "search", "part": part, "date": date} | dict(common) | row for row in rows]
    return found
