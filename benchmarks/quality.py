"""Quality at equal measured time: every rule's videos against the dense ones, on the embedded model.

    record errors ─► price ─► per rule and target: fit the plan to the target's time ─► clips, held-out loss ─► rows

A row is made of units (a fit, a clip, a loss), each written to a journal in FILE.parts as soon as it is done: a run
that is cut, or stopped by --minutes, goes on where it was. Rules, controls and numbers are explained in README.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import quality_rows
import torch
from quality_lab import FIT, OF_THE_PLAN, Lab, Settings
from quality_rows import RULES, TARGETS, Row
from tqdm import tqdm

from sparse_vdit.demo.pipeline import check_weights
from sparse_vdit.report.metrics import psnr, ssim
from sparse_vdit.search.journal import Journal
from sparse_vdit.search.recorder import POWER_BINS

TOLERANCE = 0.02  # of the target speed-up: near enough
MOST_LEARNED = 0.1  # of a stock step: by how much earlier fits may move the next one
TRIES = 3  # to meet it, those for the warm-up not counted
GUESS_S = 1.2  # of a stock step, before it is measured
OF_THE_RULES = ("rules", "targets", "warm_ups", "weights")  # settings that nothing recorded depends on

Key = tuple[Any, ...]


class Notes:
    """Values by key, in a journal: what was put is there after any interruption."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.journal = Journal(path, dict(identity))
        records = [json.loads(data) for data in self.journal.records()]
        self.known: dict[Key, Any] = {tuple(key): value for key, value in records}

    def __contains__(self, key: Key) -> bool:
        return key in self.known

    def __getitem__(self, key: Key) -> Any:
        return self.known[key]

    def put(self, key: Key, value: Any) -> None:
        """Adds a value; when this returns, it is on the disk."""
        self.known[key] = json.loads(json.dumps(value))
        self.journal.append(json.dumps([list(key), value]).encode())


@dataclass(frozen=True)
class Unit:
    """A piece of work: its key in the notes, what it costs in stock steps, and how it is done."""

    key: Key
    steps: float
    run: Callable[[], Any]


class Study:
    """All units of a run, in their order.

    Args:
        settings: what is run.
        lab: the model side.
        notes: what is done already.
    """

    def __init__(self, settings: Settings, lab: Lab, notes: Notes) -> None:
        self.settings, self.lab, self.notes = settings, lab, notes

    def units(self) -> list[Unit]:
        """Everything: preparation, fits, then clip by clip all rules in turn, losses."""
        s, prompts = self.settings, self.settings.prompts
        found = [
            Unit(("stock",), 6, self._stock),
            Unit(("prices",), s.calibrate_s / GUESS_S, self._prices),
            Unit(("search",), 1.1 * s.steps * prompts + 4 * min(s.bins, POWER_BINS), self._search),
        ]
        if set(s.rules) & {"svg", "sliding_tiles", "radial", "paper"}:
            found.append(Unit(("others",), 1.25 * s.steps * prompts, self._others))
        found += [Unit(("dense", n), 1.75 * s.steps, self._dense(n)) for n in (FIT, *range(s.clips))]
        if "untrained" in s.rules:
            found += [Unit(("dense-untrained", n), s.steps, self._untrained(n)) for n in range(s.clips)]
        found.append(Unit(("loss", "dense"), s.loss_clips, lambda: self.lab.losses("dense", None)))
        found += [
            Unit(("fit", rule, target), self._fit_steps(rule, target), self._fit(rule, target))
            for rule, target in self.rows()
        ]
        for clip in range(s.clips):
            found += [
                Unit(("clip", rule, target, clip), s.steps / target + 1, self._clip(rule, target, clip))
                for rule, target in rotated(self.rows(), clip)
            ]
        return found + [
            Unit(("loss", rule, target), s.loss_clips / target, self._loss(rule, target))
            for rule, target in self.rows()
        ]

    def rows(self) -> list[tuple[str, float]]:
        """(rule, target) in the order of fitting: what others take from comes first."""
        first = sorted(self.settings.rules, key=lambda rule: (rule in OF_THE_PLAN, RULES.index(rule)))
        return [(rule, target) for target in self.settings.targets for rule in first]

    def warm_ups(self, target: float) -> tuple[int, ...]:
        """Numbers of dense first steps that are tried."""
        return self.settings.warm_ups[self.settings.targets.index(target)]

    def _fit_steps(self, rule: str, target: float) -> float:
        if rule == "untrained":
            return 0.0
        tries = 1.5 if rule in OF_THE_PLAN else len(self.warm_ups(target)) + 0.7
        return tries * (self.settings.steps / target + 2)

    # ---- preparation ----

    def _stock(self) -> dict[str, float]:
        step_ms, attention_ms = self.lab.stock()
        return {"step_ms": step_ms, "attention_ms": attention_ms}

    def _prices(self) -> dict[str, float | None]:
        hardware = self.lab.hardware
        return {"median_error": finite(hardware.median_error), "worst_error": finite(hardware.worst_error)}

    def _search(self) -> dict[str, float | None]:
        before = self.lab.stock_seconds()
        seconds = self.lab.search()
        dense = 0.5 * (before + self.lab.stock_seconds()) * self.settings.steps * self.settings.prompts
        return {
            "seconds": seconds,
            "dense_generations_per_prompt": None if seconds is None else seconds / dense,
        }

    def _others(self) -> bool:
        return self.lab.other_errors is not None

    def _dense(self, number: int) -> Callable[[], bool]:
        return lambda: self.lab.dense(number) is not None

    def _untrained(self, number: int) -> Callable[[], bool]:
        return lambda: self.lab.dense_untrained(number) is not None

    # ---- fits ----

    def _fit(self, rule: str, target: float) -> Callable[[], dict[str, Any]]:
        return lambda: self.fitted(rule, target)

    def fitted(self, rule: str, target: float) -> dict[str, Any]:
        """The plan whose measured transformer time meets the target: its dial, warm-up, density; or why there is none.

        Of the warm-ups, the one of highest PSNR on the first calibration prompt is taken; then the time is met.
        """
        warm_ups, start = self.warm_ups(target), self._naive(target) + self._learned(rule)
        if rule in OF_THE_PLAN:
            base: dict[str, Any] = self.notes[("fit", "budget_fitted", target)]
            if "missing" in base or rule == "untrained":
                return base
            warm_ups, start = (base["warm_up"],), base["time_ms"]
        tries = [self._tried(rule, target, warm_up, start) for warm_up in warm_ups]
        if all("missing" in made for made in tries) and start < self._naive(target):
            tries = [self._tried(rule, target, warm_up, self._naive(target)) for warm_up in warm_ups]
        best = max(tries, key=lambda made: made.get("psnr_db", -np.inf))
        if "missing" in best:
            return best
        close = [best]
        while abs(close[-1]["speedup"] / target - 1) > TOLERANCE and len(close) <= TRIES:
            off = self.notes[("stock",)]["step_ms"] * (1 / target - 1 / close[-1]["speedup"])
            made = self._tried(rule, target, best["warm_up"], close[-1]["time_ms"] + off)
            if "missing" in made:
                break
            close.append(made)
        return min(close, key=lambda made: abs(made["speedup"] / target - 1))

    def _naive(self, target: float) -> float:
        """Attention milliseconds of a step that leave the target's time, if nothing else changed."""
        stock = self.notes[("stock",)]
        return stock["step_ms"] / target - (stock["step_ms"] - stock["attention_ms"])

    def _learned(self, rule: str) -> float:
        """By how much the time had to be moved in earlier fits: of this rule, else of all."""
        fits = [
            (key[1], value["time_ms"] + self._off(key[2], value) - self._naive(key[2]))
            for key, value in self.notes.known.items()
            if key[0] == "fit" and "time_ms" in value and key[1] not in OF_THE_PLAN
        ]
        mine = [moved for name, moved in fits if name == rule] or [moved for _, moved in fits]
        most = MOST_LEARNED * self.notes[("stock",)]["step_ms"]
        return float(np.clip(np.median(mine), -most, most)) if mine else 0.0

    def _off(self, target: float, fit: Mapping[str, float]) -> float:
        return self.notes[("stock",)]["step_ms"] * (1 / target - 1 / fit["speedup"])

    def _tried(self, rule: str, target: float, warm_up: int, time_ms: float) -> dict[str, Any]:
        """One video of the calibration prompt, between two stock calls."""
        attention_ms = self.notes[("stock",)]["attention_ms"]
        try:
            plan = self.lab.plan(rule, time_ms, attention_ms, warm_up)
        except ValueError as error:
            return {"missing": f"{target}x with {warm_up} dense steps: {error}"}
        before = self.lab.stock_seconds()
        run = self.lab.generate(rule, plan, FIT)
        stock = 0.5 * (before + self.lab.stock_seconds())
        return {
            "time_ms": time_ms,
            "warm_up": warm_up,
            "speedup": stock * self.settings.steps / sum(run.seconds),
            "psnr_db": psnr(self.lab.dense(FIT), run.video),
            "density": self.lab.density(plan),
            "predicted": plan.provenance.get("predicted"),
        }

    # ---- clips and losses ----

    def _plan_of(self, rule: str, target: float, number: int, of_losses: bool = False) -> Any:
        fit = self.notes[("fit", rule, target)]
        make = self.lab.loss_plan if of_losses else self.lab.plan
        return make(rule, fit["time_ms"], self.notes[("stock",)]["attention_ms"], fit["warm_up"], number)

    def _clip(self, rule: str, target: float, number: int) -> Callable[[], dict[str, float] | None]:
        def run() -> dict[str, float] | None:
            if "missing" in self.notes[("fit", rule, target)]:
                return None
            plan = self._plan_of(rule, target, number)
            stock = self.lab.stock_seconds()
            made = self.lab.generate(rule, plan, number)
            dense = self.lab.dense_untrained if rule == "untrained" else self.lab.dense
            return {
                "psnr_db": psnr(dense(number), made.video),
                "ssim": ssim(dense(number), made.video),
                "seconds": sum(made.seconds),
                "stock_s": stock,
            }

        return run

    def _loss(self, rule: str, target: float) -> Callable[[], list[float] | None]:
        def run() -> list[float] | None:
            if "missing" in self.notes[("fit", rule, target)]:
                return None
            return self.lab.losses(rule, lambda number: self._plan_of(rule, target, number, True))

        return run

    # ---- what came of it ----

    def table(self, common: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
        """Rows, in the order of the rules, and a sentence about each one that could not be made."""
        made, missing = [], []
        about = self.about() | dict(common)
        for target in self.settings.targets:
            for rule in (rule for rule in RULES if rule in self.settings.rules):
                fit = self.notes[("fit", rule, target)]
                if "missing" in fit:
                    missing.append(f"{rule} has no row: {fit['missing']}")
                    continue
                clips = [self.notes[("clip", rule, target, n)] for n in range(self.settings.clips)]
                losses = self.notes[("loss", rule, target)]
                row = quality_rows.make_row(rule, target, fit["density"], clips, losses, self.settings.steps)
                made.append(row | {"warm_up": fit["warm_up"]} | about)
        return made, missing

    def about(self) -> dict[str, Any]:
        """Provenance of every row."""
        stock, prices = self.notes[("stock",)], self.notes[("prices",)]
        return {
            "bench": "quality",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "steps": self.settings.steps,
            "clips": self.settings.clips,
            "bins": self.settings.bins,
            "block": self.settings.block,
            "calibration_prompts": self.settings.prompts,
            "candidates": self.lab.candidates.count,
            "weights": self.settings.weights,
            "stock_step_ms": stock["step_ms"],
            "stock_attention_ms": stock["attention_ms"],
            "search_cost": self.notes[("search",)]["dense_generations_per_prompt"],
            "cost_model_median_error": prices["median_error"],
            "dense_heldout_loss": float(np.mean(self.notes[("loss", "dense")])),
            "weights_sha256": self.lab.weights_sha256,
        }


def finite(value: float) -> float | None:
    """The value, or None for what JSON cannot hold."""
    return value if np.isfinite(value) else None


def rotated(rows: list[tuple[str, float]], by: int) -> list[tuple[str, float]]:
    """The same rows, begun elsewhere for every clip, so that a machine that warms up favours none."""
    first = by * 7 % len(rows)
    return rows[first:] + rows[:first]


def work(study: Study, deadline: float | None, shown: bool) -> int:
    """Does what is not done yet, until the deadline.

    Returns:
        Number of units left.
    """
    todo = [unit for unit in study.units() if unit.key not in study.notes]
    form = "{desc:<34} {bar} {percentage:3.0f} %, {elapsed} < {remaining}"
    total = sum(unit.steps for unit in todo)
    with tqdm(total=total, bar_format=form, disable=not shown or not sys.stderr.isatty()) as bar:
        begin = time.monotonic()
        for number, unit in enumerate(todo):
            if deadline is not None and time.monotonic() > deadline:
                return len(todo) - number
            name = " ".join(map(str, unit.key))
            bar.set_description_str(name)
            study.notes.put(unit.key, unit.run())
            bar.update(unit.steps)
            if shown and bar.disable:
                print(_said(name, bar, total, sum(u.steps for u in todo[: number + 1]), begin), flush=True)
    return 0


def _said(name: str, bar: Any, total: float, done: float, begin: float) -> str:
    gone = time.monotonic() - begin
    left = gone * (total - done) / max(done, 1e-9)
    return f"{100 * done / total:5.1f} %  {name:<34} {gone / 60:6.1f} min, about {left / 60:.0f} min left"


def estimated_minutes(study: Study, step_s: float) -> float:
    """What is left to do, from the time of a stock step."""
    return sum(unit.steps for unit in study.units() if unit.key not in study.notes) * step_s / 60


def settings_of(options: argparse.Namespace) -> Settings:
    """What the command line asks for."""
    names = tuple(options.rules.split(",")) if options.rules else RULES
    strange = [name for name in names if name not in RULES]
    if strange:
        raise SystemExit(f"bench: rule is {strange[0]!r}, expected some of {','.join(RULES)}")
    if set(names) & set(OF_THE_PLAN) and "budget_fitted" not in names:
        names = ("budget_fitted", *names)
    targets = _targets(options.targets) if options.targets is not None else None
    small: dict[str, Any] = {}
    if options.quick:
        small = {"clips": 2, "steps": 3, "prompts": 1, "loss_clips": 2, "bins": 2, "calibrate_s": 6.0}
        targets = targets or (1.6,)
    targets = targets or TARGETS
    for name in ("clips", "steps", "bins", "block"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise SystemExit(f"bench: {name} is {value}, expected 1 or more")
    if options.warm_up is not None:
        warm_ups = ((options.warm_up,),) * len(targets)
    else:
        warm_ups = tuple((0,) if options.quick else (1, 2) if target < 1.8 else (0, 1) for target in targets)
    chosen = {
        "clips": options.clips,
        "steps": options.steps,
        "weights": options.weights,
        "bins": options.bins,
        "block": options.block,
    }
    small |= {name: value for name, value in chosen.items() if value is not None}
    if options.model is not None:
        small["model"] = options.model
    settings = Settings(names, targets, warm_ups=warm_ups, **small)
    if settings.clips < 1 or not 0 <= settings.most_warm_up < settings.steps:
        raise SystemExit(
            "bench: clips, steps and warm-up do not fit each other, expected 1 clip, warm-up < steps"
        )
    return settings


def _targets(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not all(1 < target < 10 for target in found):
        raise SystemExit(f"bench: targets is {text!r}, expected numbers above 1 and below 10 like 1.3,1.6")
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `quality` alone."""
    group = parser.add_argument_group("quality")
    group.add_argument(
        "--minutes", type=float, metavar="M", help="stop after so long; the same command goes on"
    )
    group.add_argument("--rules", metavar="A,B", help=f"some of {', '.join(RULES)}")
    group.add_argument("--targets", metavar="X,Y", help="speed-ups, default 1.3,1.6,2.0")
    group.add_argument("--clips", type=int, metavar="N", help="judged videos, default 8")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps, default 10")
    group.add_argument("--bins", type=int, metavar="N", help="intervals of noise level, default 5")
    group.add_argument("--block", type=int, metavar="N", help="tokens of a block, default 64")
    group.add_argument(
        "--warm-up",
        type=int,
        metavar="N",
        help="dense first steps of every rule; default: each rule's better of two",
    )
    group.add_argument(
        "--weights", choices=["relative", "mse", "sensitivity"], help="how heads' errors are weighed"
    )
    group.add_argument("--model", type=Path, metavar="DIR", help="default: the embedded model")
    group.add_argument(
        "--recordings",
        type=Path,
        metavar="FILE",
        help="take errors, prices and dense videos from that run's parts: other --rules, --targets, --weights alone",
    )


@contextmanager
def _lab_folder(recordings: Path | None, folder: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """Where errors, prices and dense videos are kept; a folder of other settings, weights or machine is refused."""
    if recordings is not None:
        folder = recordings.with_name(recordings.name + ".parts")
        if not ((folder / "lab").exists() and (folder / "errors-ours.safetensors").exists()):
            raise SystemExit(f"bench: {folder} holds no recordings, expected the parts of a quality run")
    if not (folder / "lab").exists() and any(folder.glob("errors-*")):
        raise SystemExit(f"bench: {folder} is of an earlier version, expected another file, or remove it")
    journal = Journal(folder / "lab", {name: identity[name] for name in identity if name not in OF_THE_RULES})
    try:
        yield folder
    finally:
        journal.close()


@contextmanager
def _folder(json_file: Path | None) -> Iterator[Path]:
    """Where the parts are kept: beside the JSON, or for this run only."""
    if json_file is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    folder = json_file.with_name(json_file.name + ".parts")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def measure_quality(options: argparse.Namespace, common: Mapping[str, Any]) -> list[Row]:
    """Runs or goes on, prints the table and the goals.

    Args:
        options: of the command line.
        common: device, isa, threads and commit.

    Returns:
        The rows.

    Raises:
        SystemExit: the time was up before the end.
    """
    begin = time.monotonic()
    logging.getLogger("sparse_vdit").setLevel(logging.WARNING)
    settings = settings_of(options)
    identity = {
        name: str(value) if name == "model" else json.loads(json.dumps(value))
        for name, value in asdict(settings).items()
    }
    identity |= {name: common[name] for name in ("device", "isa", "threads", "commit")} | versions()
    identity["weights_sha256"] = check_weights(settings.model)
    with _folder(options.json) as folder, _lab_folder(options.recordings, folder, identity) as shared:
        lab = Lab(settings, shared)
        notes = Notes(folder / "journal", identity)
        study = Study(settings, lab, notes)
        step_s = notes[("stock",)]["step_ms"] / 1e3 if ("stock",) in notes else lab.stock()[0] / 1e3
        print(
            f"quality: {len(study.rows())} rows of {settings.clips} clips, {settings.steps} steps of {step_s:.2f} s; "
            f"{notes.journal.kept} units are done, the rest takes about {estimated_minutes(study, step_s):.0f} minutes",
            flush=True,
        )
        deadline = None if options.minutes is None else begin + 60 * options.minutes
        left = work(study, deadline, shown=True)
        if left:
            notes.journal.close()
            raise SystemExit(
                f"bench: the time is up with {left} units left, expected the same command again to go on"
            )
        rows, missing = study.table(dict(common) | versions())
        notes.journal.close()
    print(quality_rows.header(), *map(quality_rows.line, rows), *missing, sep="\n")
    print(f"held-out loss of the dense model: {rows[0]['dense_heldout_loss']:.5f}" if rows else "no rows")
    print(*quality_rows.goals(rows), sep="\n")
    return rows


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    names = {"sparse_vdit": "sparse-vdit", "torch": "torch", "diffusers": "diffusers", "numpy": "numpy"}
    found = {}
    for name, package in names.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = torch.__version__ if name == "torch" else "unknown"
    return found | {"python": sys.version.split()[0]}
