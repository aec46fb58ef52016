"""sparse-vdit search: measures what every pattern costs every head of a model, chooses a plan, shows it.

    sparse-vdit search demo --prompts prompts.txt --out my-search --speedup 1.6 --verify
    sparse-vdit search Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompts prompts.txt --others more.txt --height 480 --width 832
        --frames 81 --steps 30 --guidance 5 --out wan --speedup 1.8

A prompts file has one prompt a line; empty lines and lines with # are passed over. Called again after any
interruption, with the same arguments, it goes on. Under torchrun the prompts are split among the processes.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .plan import (
    add_dials,
    add_settings,
    add_verification,
    count,
    edges,
    positive,
    prediction,
    request_of,
    whole,
)

if TYPE_CHECKING:
    from ..plan import ModelIdentity, SparsePlan
    from ..search import Candidates, HeadErrors, Recorder, Sample
    from ..search.distributed import Ranks
    from ..search.hardware import Machine
    from ..verify import Source, Stock
    from ..verify.folder import Folder
    from ..verify.request import Request

log = logging.getLogger(__name__)

MAX_PROMPTS_BYTES, MAX_PROMPTS, MAX_PROMPT = 2**20, 1000, 4096
STEPS, DEMO_STEPS = 30, 12


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `search`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "search", help="find a plan for a model", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", help="folder or hub id of a diffusers pipeline, or demo")
    parser.add_argument("--prompts", type=Path, required=True, help="calibration prompts, one a line")
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    add_settings(parser)
    add_recording(parser)
    add_dials(parser)
    add_verification(parser)
    parser.add_argument("--no-report", action="store_true", help="write no page")
    return parser


def add_recording(parser: argparse.ArgumentParser) -> None:
    """What is measured."""
    group = parser.add_argument_group("what is measured")
    group.add_argument("--block", type=count, default=64, help="tokens of a block (default 64)")
    group.add_argument(
        "--candidates", type=Path, help="candidates.json (default: a ladder made for the layout)"
    )
    group.add_argument("--hardware", type=Path, help="hardware.json (default: measured at once)")
    group.add_argument("--calibrate-seconds", type=positive, default=30.0, help="for that (default 30)")
    group.add_argument(
        "--follow", choices=("dense", "choice"), default="dense",
        help="hand on the dense output, or that of greedy choices (the paper's Algorithm 1)",
    )  # fmt: skip
    group.add_argument(
        "--rows", type=count, default=64, help="query rows sampled per head and call (default 64)"
    )
    group.add_argument("--recorded-bins", type=edges, metavar="EDGES", help="of noise level (default: ten)")
    group.add_argument(
        "--listen", type=count, help="measure at most so many steps of every bin (default: all)"
    )
    group.add_argument(
        "--power", type=whole, default=1,
        help="gradients per measured bin that weigh heads by what the output feels (default 1; 0: none)",
    )  # fmt: skip
    group.add_argument(
        "--power-bins", type=count, default=3, help="in so many bins, the others lie between (default 3)"
    )
    group.add_argument(
        "--power-prompts",
        type=count,
        default=1,
        help="on so many prompts; each costs three steps a bin (default 1)",
    )
    group.add_argument(
        "--measure", choices=("relative", "projected"), default="relative",
        help="errors of the heads' outputs, or behind the output projection (then no gradients are measured)",
    )  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="replace the errors of another search")


# ---- inputs ----


def prompts_of(path: Path, seed: int) -> list[Sample]:
    """The samples of a prompts file.

    Raises:
        FileNotFoundError, ValueError: one sentence.
    """
    from ..search import Sample

    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROMPTS_BYTES + 1)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"prompts: there is no file {str(path)!r}, expected one prompt a line"
        ) from None
    except IsADirectoryError:
        raise ValueError(
            f"prompts: {str(path)!r} is a folder, expected a file with one prompt a line"
        ) from None
    if len(data) > MAX_PROMPTS_BYTES:
        raise ValueError(f"prompts: the file has more than {MAX_PROMPTS_BYTES} bytes, expected at most that")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: byte {error.start} is not UTF-8, expected UTF-8 text") from None
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(found) <= MAX_PROMPTS:
        raise ValueError(f"prompts: {str(path)!r} has {len(found)} prompts, expected 1..{MAX_PROMPTS}")
    longest = max(map(len, found))
    if longest > MAX_PROMPT:
        raise ValueError(f"prompts: a prompt has {longest} letters, expected at most {MAX_PROMPT}")
    return [Sample(prompt, seed + number) for number, prompt in enumerate(found)]


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of every pipeline call, by diffusers' names."""
    given = {
        "height": args.height,
        "width": args.width,
        "num_frames": args.frames,
        "guidance_scale": args.guidance,
    }
    found = {name: value for name, value in given.items() if value is not None}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"search: --set {text!r} is given, expected NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def open_source(args: argparse.Namespace, settings: Mapping[str, Any]) -> Source:
    """The pipeline and how it makes a video: the embedded model, a checkpoint like it, or diffusers'."""
    from ..verify import Source, open_pipeline, stock_source

    folder = _demo_folder(args.model)
    if folder is None:
        pipe = open_pipeline(args.model, dtype=args.model_dtype)
        return stock_source(pipe, steps=args.steps or STEPS, settings=settings)
    if settings:
        raise ValueError(
            f"search: {next(iter(settings))} is given, expected none: the embedded model has one size"
        )
    from ..demo.pipeline import generate, load

    pipe = load(folder)
    return Source(
        pipe,
        lambda sample, steps, decode: generate(pipe, sample.prompt, sample.seed, steps).video,
        args.steps or DEMO_STEPS,
    )


def _demo_folder(model: str) -> Path | None:
    """The checkpoint of the embedded model, or one like it; None: a pipeline of diffusers."""
    if model == "demo":
        from ..demo.pipeline import MODEL

        return MODEL
    folder = Path(model)
    is_pipeline = (folder / "model_index.json").is_file()
    return folder if not is_pipeline and (folder / "weights.safetensors").is_file() else None


# ---- the work ----


def run(args: argparse.Namespace) -> int:
    """Look, state the cost, record, choose, verify, show."""
    from ..search.distributed import Ranks
    from ..search.recorder import BINS
    from ..verify.folder import Folder
    from ..verify.page import check_packages

    if not args.no_report:
        check_packages()
    samples = prompts_of(args.prompts, args.seed)
    others = prompts_of(args.others, args.seed) if args.others is not None else []
    request = request_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = settings_of(args)
    ranks = Ranks.from_environment()
    for listed in (samples, others):
        if listed:
            ranks.mine(len(listed))  # refused before hours of work, not after
    source = open_source(args, settings)
    stock = stock_of(args, source, samples[0], settings, writes=ranks.rank == 0)
    candidates = candidates_of(args, stock, writes=ranks.rank == 0)
    request.check(candidates, args.recorded_bins or BINS, stock)
    if ranks.rank == 0:
        hardware_of(args, stock, source, candidates)
    print(f"model: {stock}")
    errors = record_all(args, source, samples, stock, candidates, ranks, None)
    if others:
        record_all(args, source, others, stock, candidates, ranks, errors)
    if ranks.rank:
        return 0
    folder = Folder(args.out)
    if args.hardware is not None:
        folder.hardware = args.hardware
    verified(args, source, folder, request, samples, args.out)
    if not args.no_report:
        from ..verify.page import write_report

        print(f"report: {write_report(folder, lambda what: _say(args, f'report: {what}'))}")
    return 0


def _say(args: argparse.Namespace, what: str) -> None:
    if not args.no_progress:
        log.info("%s", what)


def stock_of(
    args: argparse.Namespace, source: Source, sample: Sample, settings: Mapping[str, Any], *, writes: bool
) -> Stock:
    """The dense step: as an earlier call of this search measured it, or by running four steps.

    Raises:
        ValueError: the folder's is of other weights, and may not be overwritten.
    """
    from ..search.weights import weights_of
    from ..verify import Stock, try_out

    noted = {**settings, "steps": source.steps}
    if (args.out / "stock.json").exists():
        found = Stock.load(args.out)
        same = found.weights == weights_of(source.pipe)
        if found.weights is not None and not same and not args.overwrite:
            raise ValueError(
                f"search: {str(args.out)!r} was measured on other weights than those of {args.model!r}, "
                "expected another --out or --overwrite"
            )
        if found.settings == noted and same:
            return found
    _say(args, "search: running four dense steps to see layout and times")
    found = try_out(source, sample, noted)
    if writes:
        found.save(args.out)
    return found


def candidates_of(args: argparse.Namespace, stock: Stock, *, writes: bool) -> Candidates:
    """As given, as in the folder (which may have been edited), or a ladder."""
    from ..search import Candidates, ladder

    own = args.out / "candidates.json"
    path = args.candidates if args.candidates is not None else own if own.exists() else None
    if path is None:
        found = ladder(stock.geometry(args.block, args.block))
    else:
        found = Candidates.load(path)
        expected = stock.geometry(found.geometry.block_q, found.geometry.block_k)
        if found.geometry != expected:
            raise ValueError(
                f"search: {str(path)!r} is for {found.geometry}, expected {expected} (= the model's tokens)"
            )
    if writes and path != own:
        found.save(own)
    return found


def hardware_of(args: argparse.Namespace, stock: Stock, source: Source, candidates: Candidates) -> Machine:
    """The constants of this machine for these calls: as given, as in the folder, or measured now."""
    from ..search import models_of
    from ..search.calibration import calibrate
    from ..search.hardware import HardwareError, Machine

    model = next(iter(models_of(source.pipe).values()))
    key = (stock.dtype, model.head_dim, candidates.geometry.block_q, candidates.geometry.block_k)
    here = Machine.here()
    path = args.hardware if args.hardware is not None else args.out / "hardware.json"
    if args.hardware is not None or path.exists():
        found = Machine.load(path)
        difference = here.difference(found)
        try:
            found.find(*key)
        except HardwareError:
            if args.hardware is not None:
                raise
        else:
            if difference is not None:
                log.warning("search: %s was measured on another machine: %s", path, difference)
            return found
        here = here if difference is not None else found
    _say(args, f"search: measuring this machine for {args.calibrate_seconds:g} s ({path})")
    made = calibrate(
        dtype=key[0], head_dim=key[1], block_q=key[2], block_k=key[3],
        seconds=args.calibrate_seconds, progress=not args.no_progress,
    )  # fmt: skip
    if made.is_doubtful:
        log.warning("search: %s", made.doubt)
    found = here.with_entries([made])
    found.save(path)
    return found


def record_all(
    args: argparse.Namespace,
    source: Source,
    samples: Sequence[Sample],
    stock: Stock,
    candidates: Candidates,
    ranks: Ranks,
    first: Mapping[str, HeadErrors] | None,
) -> dict[str, HeadErrors]:
    """Errors of all candidates on the given prompts; `first`: those of the calibration, where these are others."""
    from ..models import observe
    from ..search import record
    from ..verify.folder import ERRORS, TRANSFER

    recorder = recorder_of(args, source, candidates, None if first is None else (first, ranks))
    which = "calibration" if first is None else "other"
    if ranks.rank == 0:
        estimate = recorder.estimate(stock.steps, len(samples), stock.batch, stock.step_ms / 1e3)
        generations = stock.step_ms * stock.steps * len(samples) / 1e3
        print(
            f"{len(samples)} {which} prompts: about {generations:.0f} s of generations; {estimate}",
            flush=True,
        )
    return record(
        source.pipe,
        samples,
        args.out / (ERRORS if first is None else TRANSFER),
        recorder=recorder,
        observe=observe,
        settings={**stock.settings},
        generate=source.record,
        progress=not args.no_progress,
        overwrite=args.overwrite,
        ranks=ranks,
    )


def recorder_of(
    args: argparse.Namespace,
    source: Source,
    candidates: Candidates,
    earlier: tuple[Mapping[str, HeadErrors], Ranks] | None = None,
) -> Recorder:
    """The recorder that the arguments ask for, with the mass stripes of an earlier recording (known to rank 0)."""
    from ..search import Recorder, models_of
    from ..search.recorder import BINS
    from ..verify.source import projections_of

    bins, models = args.recorded_bins or BINS, models_of(source.pipe)
    is_projected = args.measure == "projected"
    return Recorder(
        models,
        candidates,
        bins,
        rows=args.rows,
        seed=args.seed,
        follow=args.follow,
        **(_choosing(args, candidates) if args.follow == "choice" else {}),
        listen=args.listen,
        power=0 if is_projected else args.power,
        power_prompts=args.power_prompts,
        power_bins=args.power_bins,
        projections=projections_of(source.pipe) if is_projected else None,
        stripes=None if earlier is None else _stripes(*earlier, models, candidates, bins),
    )  # fmt: skip


def _choosing(args: argparse.Namespace, candidates: Candidates) -> dict[str, Any]:
    """The paper's greedy rule: lambda, epsilon, and one width of each mode."""
    from ..search.candidates import THRESHOLD, paper_modes

    threshold = THRESHOLD if args.threshold is None else args.threshold
    among = paper_modes(candidates, args.mode_density)
    return {"penalty": args.penalty, "threshold": threshold, "among": among}


def _stripes(
    errors: Mapping[str, HeadErrors],
    ranks: Ranks,
    models: Mapping[str, ModelIdentity],
    candidates: Candidates,
    bins: Sequence[float],
) -> dict[str, Any]:
    """Mass stripes of a recording in the bins before empty ones were joined; rank 0 has it and tells the others."""
    import numpy as np

    found = {}
    for name, model in models.items():
        shape = (len(bins) - 1, model.layers, model.heads, candidates.stripe_blocks)
        blocks = np.full(shape, -1, dtype=np.int32)
        if ranks.rank == 0:
            rows = np.searchsorted(errors[name].bins, bins[:-1], side="right") - 1
            blocks = errors[name].stripes[rows]
        found[name] = ranks.share(blocks)
    return found


def verified(
    args: argparse.Namespace,
    source: Source,
    folder: Folder,
    request: Request,
    samples: Sequence[Sample],
    out: Path,
) -> SparsePlan:
    """The plan, written and printed; with --verify or --target-psnr by real generations."""
    from ..verify.heads import save_pictures, take_pictures

    plan = _chosen(args, source, folder, request, samples)
    written = plan.save_pretrained(out)
    print("\n".join([*prediction(plan), f"plan: {written}"]), flush=True)
    stock = folder.stock
    if args.verify is None or stock is None:
        return plan
    _verify(args, source, plan, samples, out)
    noise = [level for levels in stock.levels.values() for level in levels]
    _say(args, "verify: attention pictures of example heads")
    save_pictures(out, plan, take_pictures(source, plan, samples[0], noise))
    return plan


def _chosen(
    args: argparse.Namespace, source: Source, folder: Folder, request: Request, samples: Sequence[Sample]
) -> SparsePlan:
    if request.target_psnr is None:
        return request.choose(folder.errors, folder.cost, folder.stock)
    from ..plan import SparsePlan
    from ..search.target import reach_psnr
    from ..verify import mean_psnr

    measure = mean_psnr(source, samples[: args.verify or 2])

    def make(error: float) -> SparsePlan:
        wanted = replace(request, target_psnr=None, max_error=error)
        return wanted.choose(folder.errors, folder.cost, folder.stock)

    def judge(plan: SparsePlan) -> float:
        found = measure(plan)
        error = plan.provenance["predicted"]["mean_error"]
        _say(args, f"target: mean error {error:.3g} gives {found:.2f} dB, wanted {request.target_psnr:g} dB")
        return found

    plan, trials = reach_psnr(make, judge, request.target_psnr, tries=args.tries)
    reached = next(trial.psnr_db for trial in trials if trial.plan is plan)
    print(f"target {request.target_psnr:g} dB: {reached:.2f} dB achieved, {len(trials)} plans tried")
    noted = {"target_psnr": request.target_psnr, "plans_tried": len(trials)}
    if math.isfinite(reached):
        noted["reached_psnr"] = round(reached, 3)
    return SparsePlan(plan.transformers, plan.provenance | {"target": noted})


def _verify(
    args: argparse.Namespace, source: Source, plan: SparsePlan, samples: Sequence[Sample], out: Path
) -> None:
    """Generates, compares, prints achieved next to predicted, writes the numbers last."""
    from ..verify import verify
    from ..verify.clips import Clips

    others = prompts_of(args.others, args.seed) if args.others is not None else []
    clips = Clips(None if args.no_videos else out)
    groups = {"calibration": samples[: args.verify], "others": others[: args.verify]}
    found = verify(source, plan, groups, keep=clips, tell=lambda what: _say(args, f"verify: {what}"))
    clips.save(out, plan)
    found.save(out)
    predicted = plan.provenance.get("predicted", {})
    said = f"{predicted['speedup']:.2f}x predicted" if "speedup" in predicted else "no step predicted"
    psnr = found.psnr_db()
    print(
        f"achieved: {found.speedup:.2f}x ({said}), PSNR {'equal' if psnr is None else f'{psnr:.2f} dB'}, "
        f"SSIM {found.ssim():.4f}, {len(found.all)} videos"
    )
    if found.transfer_db is not None:
        print(f"transfer: PSNR on other prompts {found.transfer_db:+.2f} dB against those of the calibration")
