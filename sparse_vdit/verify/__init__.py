"""Dense against a plan, on a real pipeline: what a step takes, what a plan changes, and whether it carries over.

    source = stock_source(pipe, steps=30, settings={"height": 480, "width": 832, "num_frames": 81})
    stock = try_out(source, Sample("a cat"))            # four steps: token layout, times, noise levels
    found = verify(source, plan, [Sample("a dog", 7)])  # step times, PSNR, SSIM, achieved next to predicted
    plan, tries = to_psnr(30.0, source, samples, plan_at, (fastest_ms, dense_ms))

Reading order: source.py, stock.py, judge.py, target.py, transfer.py, heads.py, folder.py, page.py. Nothing here imports
torch before it is needed: a plan is made again from files without it.
"""

from .judge import Judged, Verification, verify
from .source import Source, open_pipeline, stock_source
from .stock import Stock, try_out
from .target import Try, to_psnr
from .transfer import Transfer, chosen_options, errors_of, transfer

__all__ = [
    "Judged", "Source", "Stock", "Transfer", "Try", "Verification",
    "chosen_options", "errors_of", "open_pipeline", "stock_source", "to_psnr", "transfer", "try_out", "verify",
]  # fmt: skip
