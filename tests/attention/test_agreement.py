"""The same bits for 1, 2 and 7 threads, call after call, head by head; levels of instructions agree with each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kit import attend

from sparse_vdit import _C, Geometry, LayerPlan, Order, Pattern, attention

GEOMETRY = Geometry(frames=5, height=8, width=9, prefix=5, suffix=20, block_q=32, block_k=32)
PATTERNS = [
    Pattern.full(),
    Pattern.diagonal(half_width=40, remainder=-0.5),
    Pattern.multi_diagonal(half_width=3),
    Pattern.periodic_tiles(tile=(2, 3, 3), time=(1, 0, None), space=(1, 0, 3), remainder=1.0),
    Pattern.vertical_stripe(key_blocks=[1, 7], order=Order.token_major()),
    Pattern.skip(),
]


@pytest.mark.isa
@pytest.mark.parametrize("dtype", attend.DTYPES)
def test_same_bits_on_any_number_of_threads(rng: np.random.Generator, dtype: str) -> None:
    layer = LayerPlan(GEOMETRY, PATTERNS)
    q, k, v = attend.inputs(rng, GEOMETRY, len(PATTERNS), batch=2, dtype=dtype)
    kv_len = np.array([GEOMETRY.tokens - 3, GEOMETRY.tokens])
    results = []
    try:
        for n_threads in (1, 2, 7, 2, 1):
            _C.set_threads(n_threads)
            results.append(attention(q, k, v, layer=layer, kv_len=kv_len, return_lse=True))
    finally:
        _C.set_threads(0)
    for out, lse in results[1:]:
        assert (out.view(np.uint8) == results[0][0].view(np.uint8)).all()
        assert (lse == results[0][1]).all()


@pytest.mark.isa
def test_a_head_does_not_depend_on_its_neighbours(rng: np.random.Generator) -> None:
    q, k, v = attend.inputs(rng, GEOMETRY, len(PATTERNS))
    together = attention(q, k, v, layer=LayerPlan(GEOMETRY, PATTERNS))
    for h, pattern in enumerate(PATTERNS):
        alone = attention(*(x[:, h : h + 1] for x in (q, k, v)), layer=LayerPlan(GEOMETRY, [pattern]))
        assert (together[:, h] == alone[:, 0]).all(), pattern


@pytest.mark.isa
def test_orders_do_not_change_full_attention(rng: np.random.Generator) -> None:
    """Softmax sums do not depend on the order of keys: a full cover in any order is full attention up to rounding."""
    nq, nk = GEOMETRY.query_blocks, GEOMETRY.key_blocks
    orders = [Order.frame_major(), Order.token_major(), Order.tiles(2, 3, 4)]
    layer = LayerPlan.from_block_masks(GEOMETRY, [np.ones((nq, nk), bool)] * 3, orders=orders)
    q, k, v = (np.repeat(x, 3, axis=1) for x in attend.inputs(rng, GEOMETRY, 1))
    out = attention(q, k, v, layer=layer)
    assert np.abs(out[:, 1:] - out[:, :1]).max() < 2e-6


SCRIPT = """
import sys
import numpy as np
from sparse_vdit import Geometry, LayerPlan, Pattern, attention, build_info

data = np.load(sys.argv[1])
geometry = Geometry(frames=5, height=8, width=9, prefix=5, suffix=20, block_q=32, block_k=32)
layer = LayerPlan(geometry, [Pattern.full(), Pattern.diagonal(half_width=40, remainder=-0.5)])
np.save(sys.argv[2], attention(data["q"], data["k"], data["v"], layer=layer))
print(build_info()["isa"])
"""


def test_levels_agree(rng: np.random.Generator, tmp_path: Path) -> None:
    """Every level this machine has, in a process each, within a few units in the last place."""
    best = ("portable", "avx2", "avx512", "avx512bf16")
    levels = best[: best.index(_C.build_info()["isa_best"]) + 1]
    q, k, v = attend.inputs(rng, GEOMETRY, 2)
    np.savez(tmp_path / "in.npz", q=q, k=k, v=v)
    results = {}
    for level in levels:
        command = [
            sys.executable,
            "-P",
            "-c",
            SCRIPT,
            str(tmp_path / "in.npz"),
            str(tmp_path / f"{level}.npy"),
        ]
        done = subprocess.run(
            command,
            env={**os.environ, "SPARSE_VDIT_ISA": level},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == level
        results[level] = np.load(tmp_path / f"{level}.npy")
    for level in levels[1:]:
        assert np.abs(results[level] - results["portable"]).max() < 2e-6, level


SIDE_BY_SIDE = """
import threading
import torch
from sparse_vdit import Geometry, LayerPlan, Pattern, _C, attention

torch.set_num_threads(3)
geometry = Geometry(frames=5, height=8, width=9, suffix=20, block_q=32, block_k=32)
layer = LayerPlan(geometry, [Pattern.full(), Pattern.diagonal(half_width=40, remainder=-0.5)])
inputs = [torch.randn(3, 2, 2, geometry.tokens, 64) for _ in range(4)]
expected = [attention(*qkv, layer=layer) for qkv in inputs]
wrong = []

def work(number):
    for _ in range(20):
        if not torch.equal(attention(*inputs[number], layer=layer), expected[number]):
            wrong.append(number)

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(_C.build_info()["pool"], wrong)
"""


def test_callers_side_by_side_on_the_pool_of_torch(tmp_path: Path) -> None:
    """Each Python thread has a team of torch's threads of its own; scratch is not mixed up."""
    environ = {name: value for name, value in os.environ.items() if name != "SPARSE_VDIT_THREADS"}
    command = [sys.executable, "-P", "-c", SIDE_BY_SIDE]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.stdout.strip() == "torch []", done.stdout + done.stderr
