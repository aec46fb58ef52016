"""Measures attention, how well its cost is predicted, what rules are worth in decibels at equal time, or what the
search takes: `python benchmarks/bench.py attention|cost|quality|search [--quick] [--json FILE] [--threads N]`.

Prints a table and, on request, writes its rows as JSON. Numbers mean what README.md beside this file says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import baselines
import cases
import cost
import numpy as np
import quality
import search
import timing
import torch

from sparse_vdit import _C, Geometry, LayerPlan, Pattern, attention, build_info
from sparse_vdit.search.errors_file import write_file

KEYS = [
    "bench", "device", "isa", "threads", "dtype", "head_dim", "tokens", "heads", "pattern", "remainder", "density",
    "ours_ms", "ours_ms_p20", "ours_ms_p80", "baseline", "baseline_ms", "ratio", "gflops", "peak_gflops",
    "share_of_peak", "commit",
]  # fmt: skip
HEADS = 2
QUICK_BUDGET_S = (
    17.0  # rounds of one head size; with imports, warm-up and both sizes a run stays within a minute
)
FULL_BUDGET_S = 60.0

Row = dict[str, Any]
Options = argparse.Namespace


def device_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


class Bench:
    """One set of arrays, the variants that run on them, and the rows they give."""

    def __init__(
        self, dtype: str, head_dim: int, geometry: Geometry, heads: int, options: Options, bench: str
    ) -> None:
        self.dtype, self.head_dim, self.geometry, self.heads = dtype, head_dim, geometry, heads
        self.q, self.k, self.v = baselines.tensors(dtype, heads, geometry.tokens, head_dim)
        self.variants: dict[str, Callable[[], object]] = {}
        self.layers: dict[str, LayerPlan] = {}
        self.common = {
            "bench": bench,
            "device": device_name(),
            "isa": build_info()["isa"],
            "threads": options.threads,
            "dtype": dtype,
            "head_dim": head_dim,
            "tokens": geometry.tokens,
            "heads": heads,
            "commit": commit(),
        }

    def flop(self, density: float) -> float:
        return 4.0 * self.geometry.tokens**2 * self.head_dim * self.heads * density

    def add_ours(self, name: str, pattern: Pattern) -> None:
        layer = LayerPlan(self.geometry, [pattern] * self.heads)
        layer.items()  # the visit list is made once per plan
        self.layers[name] = layer
        if self.dtype == "bfloat16":
            self.variants[name] = lambda: attention(self.q, self.k, self.v, layer=layer)
        else:
            arrays = [x.numpy() for x in (self.q, self.k, self.v)]
            self.variants[name] = lambda: attention(*arrays, layer=layer)

    def add_torch(self) -> None:
        self.variants["torch_sdpa"] = baselines.sdpa(self.q, self.k, self.v)

    def add_flex(self, name: str) -> None:
        self.variants[f"flex:{name}"] = baselines.flex(self.q, self.k, self.v, self.layers[name])

    def row(
        self, rounds: timing.Rounds, name: str, baseline: str, scale: float = 1.0, label: str = ""
    ) -> Row:
        """ratio = scale * baseline_ms / ours_ms: above 1, ours is faster than the baseline (times scale)."""
        layer = self.layers[name]
        density = float(layer.density(0))
        pattern, beta = name.split("+")[0], layer.betas[0] if name.endswith("+remainder") else None
        flop = self.flop(density)
        return self.common | {
            "pattern": pattern.split("@")[0],
            "remainder": None if beta is None else float(beta),
            "density": density,
            "ours_ms": rounds.median(name),
            "ours_ms_p20": rounds.percentile(name, 20),
            "ours_ms_p80": rounds.percentile(name, 80),
            "baseline": label or baseline,
            "baseline_ms": scale * rounds.median(baseline),
            "ratio": scale * rounds.ratio(baseline, name),
            "gflops": flop / rounds.median(name) * 1e-6,
            "peak_gflops": float(np.median(rounds.peak_gflops)),
            "share_of_peak": rounds.share_of_peak(name, flop),
        }


def sparse_names(bench: Bench, families: tuple[str, ...], densities: tuple[float, ...]) -> list[str]:
    names = []
    for family in families:
        for wanted in densities:
            pattern = cases.pattern_of(bench.geometry, family, wanted)
            bench.add_ours(f"{family}@{wanted}", pattern)
            bench.add_ours(f"{family}@{wanted}+remainder", pattern.with_remainder(0.0))
            names += [f"{family}@{wanted}", f"{family}@{wanted}+remainder"]
    return names


def dense_and_sparse(
    dtype: str, head_dim: int, options: Options, budget_s: float, flex: bool
) -> Iterator[Row]:
    """Dense against torch; sparse against density x our dense, against torch's dense, against FlexAttention."""
    bench = Bench(dtype, head_dim, cases.QUICK, HEADS, options, "attention")
    bench.add_ours("full", Pattern.full())
    bench.add_torch()
    names = sparse_names(bench, cases.FAMILIES, cases.DENSITIES)
    flexed = [name for name in ("full", "diagonal@0.25", "diagonal@0.1") if flex]
    for name in flexed:
        bench.add_flex(name)
    rounds = timing.interleave(bench.variants, budget_s, dtype, clock=options.clock)
    yield bench.row(rounds, "full", "torch_sdpa")
    for name in names:
        density = float(bench.layers[name].density(0))
        yield bench.row(rounds, name, "full", density, "density_x_ours_dense")
        yield bench.row(rounds, name, "torch_sdpa")
    for name in flexed:
        yield bench.row(rounds, name, f"flex:{name}", label="flex_attention")


def break_even(dtype: str, head_dim: int, options: Options, budget_s: float) -> Iterator[Row]:
    """From which density down ours is faster than torch's dense attention."""
    bench = Bench(dtype, head_dim, cases.QUICK, HEADS, options, "break_even")
    bench.add_torch()
    for wanted in (0.8, 0.5):
        bench.add_ours(f"diagonal@{wanted}", cases.pattern_of(cases.QUICK, "diagonal", wanted))
    rounds = timing.interleave(bench.variants, budget_s, dtype, clock=options.clock)
    for name in bench.layers:
        yield bench.row(rounds, name, "torch_sdpa")


def growth(head_dim: int, options: Options, budget_s: float) -> Iterator[Row]:
    """Time over tokens at a fixed band; baseline_ms = the line through the smallest size, so ratio >= 1 is linear."""
    benches, variants = [], {}
    for tokens in cases.GROWTH_TOKENS:
        geometry = Geometry(frames=tokens // 1024, height=32, width=32)
        bench = Bench("float32", head_dim, geometry, 1, options, "growth")
        bench.add_ours("diagonal", Pattern.diagonal(half_width=cases.GROWTH_HALF_WIDTH))
        benches.append(bench)
        variants[str(tokens)] = bench.variants["diagonal"]
    rounds = timing.interleave(variants, budget_s, clock=options.clock)
    first = str(cases.GROWTH_TOKENS[0])
    for bench in benches:
        name = str(bench.geometry.tokens)
        own = timing.Rounds({"diagonal": rounds.ms[name], first: rounds.ms[first]}, rounds.peak_gflops)
        scale = bench.geometry.tokens / cases.GROWTH_TOKENS[0]
        yield bench.row(own, "diagonal", first, scale, "linear_from_4096")
    logs = np.log(cases.GROWTH_TOKENS), np.log([rounds.median(str(tokens)) for tokens in cases.GROWTH_TOKENS])
    print(f"growth of a fixed band, 4k to 64k tokens, D = {head_dim}: exponent {np.polyfit(*logs, 1)[0]:.3f}")


def visit_lists(options: Options, budget_s: float) -> Iterator[Row]:
    """Milliseconds to make the visit lists of 24 patterns at 119,056 tokens, and their size (gflops stay empty)."""
    geometry, patterns = cases.LONG, cases.visit_list_patterns()
    density = float(np.mean([cases.density(geometry, pattern) for pattern in patterns]))
    ints, wires = geometry.to_ints(), [pattern.to_ints() for pattern in patterns]
    remainder = np.zeros(len(patterns), bool)
    rows, codes = _C.visits(ints, wires, remainder)
    rounds = timing.interleave(
        {"visits": lambda: _C.visits(ints, wires, remainder)}, budget_s, least=10, clock=options.clock
    )
    size = (rows.nbytes + codes.nbytes) / 2**20
    print(f"visit lists of {len(patterns)} patterns: {size:.1f} MiB, mean density {density:.3f}")
    yield dict.fromkeys(KEYS) | {
        "bench": "visit_lists",
        "device": device_name(),
        "isa": build_info()["isa"],
        "threads": 1,
        "tokens": geometry.tokens,
        "heads": len(patterns),
        "pattern": "24 distinct",
        "density": density,
        "ours_ms": rounds.median("visits"),
        "ours_ms_p20": rounds.percentile("visits", 20),
        "ours_ms_p80": rounds.percentile("visits", 80),
        "commit": commit(),
    }


def attention_rows(options: Options) -> Iterator[Row]:
    if options.quick:
        for head_dim in (64, 128):
            yield from dense_and_sparse("float32", head_dim, options, QUICK_BUDGET_S, flex=False)
        return
    for dtype in ("float32", "bfloat16", "float16"):
        for head_dim in (64, 128):
            yield from dense_and_sparse(dtype, head_dim, options, FULL_BUDGET_S, flex=dtype == "float32")
    for head_dim in (64, 128):
        yield from break_even("float32", head_dim, options, FULL_BUDGET_S / 2)
        yield from growth(head_dim, options, FULL_BUDGET_S)
    yield from visit_lists(options, 2.0)


COLUMNS = {
    "bench": "{:11}",
    "dtype": "{:8}",
    "head_dim": "{:>4}",
    "tokens": "{:>7}",
    "pattern": "{:16}",
    "remainder": "{:>5}",
    "density": "{:>7.3f}",
    "ours_ms": "{:>9.2f}",
    "ours_ms_p20": "{:>9.2f}",
    "ours_ms_p80": "{:>9.2f}",
    "baseline": "{:22}",
    "baseline_ms": "{:>9.2f}",
    "ratio": "{:>6.3f}",
    "gflops": "{:>7.1f}",
    "peak_gflops": "{:>7.1f}",
    "share_of_peak": "{:>6.3f}",
}
HEADERS = {
    "head_dim": "D",
    "remainder": "beta",
    "ours_ms_p20": "p20",
    "ours_ms_p80": "p80",
    "share_of_peak": "share",
}


def line(row: Row) -> str:
    cells = []
    for key, form in COLUMNS.items():
        value = row[key]
        width = form.split(":")[1].rstrip("}f").split(".")[0]
        cells.append((f"{{:{width}}}" if value is None else form).format("-" if value is None else value))
    return " ".join(cells)


def header() -> str:
    widths = [form.split(":")[1].rstrip("}f").split(".")[0] for form in COLUMNS.values()]
    return " ".join(
        f"{{:{w}}}".format(HEADERS.get(key, key)[:22]) for key, w in zip(COLUMNS, widths, strict=True)
    )


def measure_attention(options: Options) -> list[Row]:
    print(header())
    rows = []
    for row in attention_rows(options):
        rows.append({key: row[key] for key in KEYS})
        print(line(row), flush=True)
    return rows


def common_fields(options: Options) -> Row:
    return {
        "device": device_name(),
        "isa": build_info()["isa"],
        "threads": options.threads,
        "commit": commit(),
    }


def measure_quality(options: Options) -> list[Row]:
    return quality.measure_quality(options, common_fields(options))


def measure_search(options: Options) -> list[Row]:
    return search.measure_search(options, common_fields(options) | quality.versions())


def measure_cost(options: Options) -> list[Row]:
    rows = cost.cost_rows(options, common_fields(options))
    rows = [{key: row[key] for key in cost.COST_KEYS} for row in rows]
    print("\n".join([cost.line(row) for row in rows] + [cost.summary(rows)]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["attention", "cost", "quality", "search"])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="within a minute: float32, 8,192 tokens, 2 heads; quality: 2 clips of 3 steps, minutes; "
        "search: small sizes alone",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--threads", type=int, metavar="N", help="default 1; quality: all cores")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of the thread instead of the clock, for a busy machine",
    )
    parser.add_argument(
        "--hardware", type=Path, metavar="FILE", help="cost: constants of sparse-vdit calibrate"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="cost: of measuring, default 60")
    quality.arguments(parser)
    options = parser.parse_args()
    if options.threads is None:
        options.threads = len(os.sched_getaffinity(0)) if options.what == "quality" else 1
    options.clock = time.thread_time if options.cpu_time else time.perf_counter
    if options.cpu_time and options.threads > 1:
        parser.error("--cpu-time counts one thread, expected --threads 1")
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}, expected at least 1")
    torch.set_num_threads(options.threads)
    _C.set_threads(options.threads)
    print(
        f"{device_name()}, isa {build_info()['isa']}, {options.threads} thread(s), torch {torch.__version__}"
    )
    measure = {
        "attention": measure_attention,
        "cost": measure_cost,
        "quality": measure_quality,
        "search": measure_search,
    }
    rows = measure[options.what](options)
    if options.json:
        write_file(options.json, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
