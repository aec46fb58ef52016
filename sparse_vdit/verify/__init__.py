"""Dense against a plan, on a real pipeline: what a step takes, what a plan changes, and whether it carries over.

    source = stock_source(pipe, steps=30, settings={"height": 480, "width": 832, "num_frames": 81})
    stock = try_out(source, Sample("a cat"))            # four steps: token layout, times, noise levels
    found = verify(source, plan, [Sample("a dog", 7)])  # step times, PSNR, SSIM, achieved next to predicted
    psnr_of = mean_psnr(source, samples)                # for search.target.reach_psnr

Reading order: source.py, stock.py, judge.py, target.py, transfer.py, heads.py, folder.py,
story.py, sections.py, page.py. Nothing here imports
torch before it is needed: a plan is made again from files without it.
"""

from .judge import Judged, Verification, verify
from .source import Source, open_pipeline, stock_source
from .stock import Stock, try_out
from .target import mean_psnr
from .transfer import Transfer, chosen_options, errors_of, transfer

__all__ = [
    "Judged", "Source", "Stock", "Transfer", "Verification",
    "chosen_options", "errors_of", "mean_psnr", "open_pipeline", "stock_source", "transfer", "try_out", "verify",
]  # fmt: skip
