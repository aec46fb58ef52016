"""Nothing leaks: every C entry point, its errors included, leaves no block behind; a failing allocation is survived."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparse_vdit import _C, Geometry, LayerPlan, Order, Pattern

GEOMETRY = Geometry(frames=4, height=4, width=8, prefix=4, suffix=3, block_q=16, block_k=16)
INTS = GEOMETRY.to_ints()
TOKENS = GEOMETRY.tokens
PATTERNS = [
    Pattern.full(),
    Pattern.vertical_stripe(key_blocks=[1, 3], order=Order.tiles(1, 2, 2), remainder=0.5),
]
LAYER = LayerPlan(GEOMETRY, PATTERNS)
WIRES = [pattern.to_ints() for pattern in PATTERNS]
MASKS = [LAYER.block_mask(head) for head in range(2)]
FLAGS = np.array([False, True])
QKV = np.ones((1, 2, TOKENS, 16), np.float32)
KV_LEN = np.array([TOKENS - 1])
HALF = QKV.astype(np.float16)
LISTS = (LAYER.items(), LAYER.codes, LAYER.head_table, LAYER.betas, LAYER.tokens, INTS)
PACKED = LAYER.packed()
OUT, LSE = np.empty_like(QKV), np.empty((1, 2, TOKENS), np.float32)
META = (QKV.shape, (0, TOKENS * 16, 16, 1), "float32")
ORDERS = np.array([-1, 0], np.int32)
SAMPLED = np.array([0, 40, TOKENS - 1], np.int32)
BETAS = np.array([-1.0, 0.0, 1.0])
STRIPES, COUNTS = np.array([[1, 2], [0, 3]], np.int32), np.array([1, 2], np.int32)
ERRORS = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, np.nan]], np.float32)
TIMES, GROUPS, ONES = np.array([[4.0, 2.0, 1.0]]), np.zeros(2, np.int32), np.ones(2)
HARDWARE = np.arange(1.0, 1.0 + len(_C.hardware_names()))
PRICED = (INTS, LAYER.rows, LAYER.codes)


def view(array: np.ndarray[Any, Any]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return array.__array_interface__["data"][0], array.shape, strides


def pointers(bin: int = 0, dtype: str = "float32", items: np.ndarray[Any, Any] = PACKED.items) -> None:
    _C.attention_pointers(
        dtype,
        *(view(array) for array in (QKV, QKV, QKV, OUT, LSE, items)),
        *(view(array) for array in (PACKED.codes, PACKED.heads, PACKED.betas, PACKED.tokens)),
        bin,
        INTS,
        0.25,
        view(KV_LEN),
    )


def probe(
    rows: np.ndarray[Any, Any] = SAMPLED, v: np.ndarray[Any, Any] = QKV, codes: Any = LAYER.codes
) -> Any:
    lists = (LAYER.rows, codes, ORDERS, LAYER.tokens)
    return _C.probe(QKV, QKV, v, rows, INTS, 0.25, *lists, KV_LEN, BETAS, STRIPES, COUNTS)


def budget(limit: float, objective: str = "time", times: np.ndarray[Any, Any] = TIMES) -> Any:
    return _C.select_budget(ERRORS, times, GROUPS, ONES, ONES, limit, objective, GROUPS, np.array([9.0]))


CALLS: dict[str, Callable[[], Any]] = {
    "geometry_check": lambda: _C.geometry_check(INTS),
    "geometry_check, short": lambda: _C.geometry_check(INTS[:3]),
    "geometry_check, float": lambda: _C.geometry_check((1.5, *INTS[1:])),
    "geometry_check, huge": lambda: _C.geometry_check((2**90, *INTS[1:])),
    "pattern_check": lambda: _C.pattern_check(INTS, WIRES[1], "mine"),
    "pattern_check, dtype": lambda: _C.pattern_check(INTS, QKV),
    "pattern_check, payload": lambda: _C.pattern_check(INTS, WIRES[1][:-1].copy()),
    "places": lambda: _C.places(INTS, (1, 0, 0, 0)),
    "places, order": lambda: _C.places(INTS, (9, 0, 0, 0)),
    "tokens": lambda: _C.tokens(INTS, (2, 1, 2, 2)),
    "tokens, order": lambda: _C.tokens(INTS, "x"),
    "visits": lambda: _C.visits(INTS, WIRES, FLAGS),
    "visits, none": lambda: _C.visits(INTS, [], FLAGS[:0]),
    "visits, entry": lambda: _C.visits(INTS, [WIRES[0], "x"], FLAGS),
    "visits, payload": lambda: _C.visits(INTS, [WIRES[1], WIRES[1][:-1].copy()], FLAGS),
    "visits_from_masks": lambda: _C.visits_from_masks(INTS, MASKS, FLAGS),
    "visits_from_masks, shape": lambda: _C.visits_from_masks(INTS, [MASKS[0], MASKS[1][:1]], FLAGS),
    "block_mask": lambda: _C.block_mask(INTS, LAYER.rows[1], LAYER.codes),
    "block_mask, rows": lambda: _C.block_mask(INTS, LAYER.rows[1] + np.uint32(99), LAYER.codes),
    "visited_pairs": lambda: _C.visited_pairs(INTS, LAYER.rows[1], LAYER.codes),
    "visited_pairs, rows": lambda: _C.visited_pairs(INTS, LAYER.rows[1] + np.uint32(99), LAYER.codes),
    "items": lambda: _C.items(INTS, LAYER.rows, LAYER.choice, FLAGS),
    "items, choice": lambda: _C.items(INTS, LAYER.rows, LAYER.choice + np.int32(9), FLAGS),
    "attention": lambda: _C.attention(QKV, QKV, QKV, *LISTS, 0.25, None, False),
    "attention, lse": lambda: _C.attention(HALF, HALF, HALF, *LISTS, 0.25, KV_LEN, True),
    "attention, list": lambda: _C.attention([1], QKV, QKV, *LISTS, 0.25, None, False),
    "attention, dtype": lambda: _C.attention(QKV, QKV.astype(float), QKV, *LISTS, 0.25, None, False),
    "attention, mixed": lambda: _C.attention(QKV, HALF, QKV, *LISTS, 0.25, None, True),
    "attention, shape": lambda: _C.attention(QKV, QKV[:, :, 1:], QKV, *LISTS, 0.25, None, True),
    "attention, kv_len": lambda: _C.attention(QKV, QKV, QKV, *LISTS, 0.25, KV_LEN + 9, True),
    "attention, items": lambda: _C.attention(
        QKV, QKV, QKV, LISTS[0] + np.uint32(77), *LISTS[1:], 0.25, None, True
    ),
    "attention, missing": lambda: _C.attention(QKV, QKV),  # type: ignore[call-arg]
    "attention_check": lambda: _C.attention_check(META, META, META, INTS, 2, 0.25),
    "attention_check, device": lambda: _C.attention_check(META, META, META, INTS, 2, 0.25, "cuda"),
    "attention_check, dtype": lambda: _C.attention_check((*META[:2], "int8"), META, META, INTS, 2, 0.25),
    "attention_check, kind": lambda: _C.attention_check(1, META, META, INTS, 2, 0.25),  # type: ignore[arg-type]
    "attention_pointers": lambda: pointers(),
    "attention_pointers, bin": lambda: pointers(bin=3),
    "attention_pointers, dtype": lambda: pointers(dtype="float64"),
    "attention_pointers, items": lambda: pointers(items=PACKED.items[0]),
    "attention_reference": lambda: _C.attention_reference(QKV, QKV, QKV, None, KV_LEN, 0.25),
    "attention_reference, mask": lambda: _C.attention_reference(
        QKV, QKV, QKV, np.ones((1, 2, 3)), None, 0.25
    ),
    "attention_reference, shape": lambda: _C.attention_reference(QKV, QKV[:, :, 1:], QKV, None, None, 0.25),
    "attention_engine": lambda: _C.attention_engine("bfloat16", 128),
    "attention_engine, dtype": lambda: _C.attention_engine("int8", 128),
    "fma_peak": lambda: _C.fma_peak("float32", 1e-6),
    "fma_peak, dtype": lambda: _C.fma_peak("int8"),
    "fma_peak, seconds": lambda: _C.fma_peak(seconds=-1.0),
    "probe": lambda: probe(),
    "probe, rows": lambda: probe(rows=SAMPLED + np.int32(TOKENS)),
    "probe, shape": lambda: probe(v=QKV[:, :, 1:]),
    "probe, codes": lambda: probe(codes=LAYER.codes[:1].copy()),
    "select_paper": lambda: _C.select_paper(ERRORS[:1].astype(float), np.array([0.0, 0.5, 1.0]), 0.5, 1.0, 0),
    "select_paper, full": lambda: _C.select_paper(
        ERRORS.astype(float), np.array([0.0, 0.5, 1.0]), 0.5, 1.0, 7
    ),
    "select_budget": lambda: budget(5.0),
    "select_budget, reach": lambda: budget(0.1),
    "select_budget, objective": lambda: budget(5.0, "beauty"),
    "select_budget, times": lambda: budget(5.0, times=TIMES[:, :1].copy()),
    "cost_layers": lambda: _C.cost_layers(HARDWARE, *PRICED, LAYER.choice[None], FLAGS[None], ORDERS, 1),
    "cost_layers, choice": lambda: _C.cost_layers(
        HARDWARE, *PRICED, LAYER.choice[None] + np.int32(9), FLAGS[None], ORDERS, 1
    ),
    "cost_heads": lambda: _C.cost_heads(HARDWARE, *PRICED, ORDERS, 1, 2),
    "cost_heads, hardware": lambda: _C.cost_heads(HARDWARE[:3].copy(), *PRICED, ORDERS, 1, 2),
    "hardware_names": lambda: _C.hardware_names(),
    "hardware_engine": lambda: _C.hardware_engine("float32", 64),
    "hardware_engine, dtype": lambda: _C.hardware_engine("int8", 64),
    "build_info": lambda: _C.build_info(),
    "set_threads": lambda: _C.set_threads(0),
    "set_threads, range": lambda: _C.set_threads(1000),
    "scratch_live": lambda: _C.scratch_live(),
    "scratch_fail_at": lambda: _C.scratch_fail_at(0),
    "raise_interrupt": lambda: _C.raise_interrupt(),
    "_bind_torch": lambda: _C._bind_torch(),
    "_fail": lambda: _C._fail(0, "nothing"),
    "_fail, internal": lambda: _C._fail(7, "select: choice 7 of 6 candidates"),
    "_fail, interrupted": lambda: _C._fail(6, "attention: interrupted"),
}


def repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        with contextlib.suppress(Exception, KeyboardInterrupt):
            call()


def test_every_entry_point_is_called_here() -> None:
    described = {
        name for name in dir(_C) if callable(getattr(_C, name)) and not isinstance(getattr(_C, name), type)
    }
    described -= {name for name in described if name.startswith("__")}
    assert described == {name.partition(",")[0] for name in CALLS}


def test_calls_with_a_comma_fail_and_the_others_do_not() -> None:
    fine = {"visits, none", "attention, lse"}
    for name, call in CALLS.items():
        if "," not in name or name in fine:
            call()
            continue
        with pytest.raises((Exception, KeyboardInterrupt)):
            call()


@pytest.mark.parametrize("name", CALLS)
def test_no_block_is_left_behind(name: str) -> None:
    call = CALLS[name]
    repeat(call, 50)
    gc.collect()
    live, left = _C.scratch_live(), []
    for _ in range(3):  # caches of NumPy and Python may still grow in the first round; a leak grows in each
        before = sys.getallocatedblocks()
        repeat(call, 1000)
        gc.collect()
        left.append(sys.getallocatedblocks() - before)
        if left[-1] < 30:
            break
    assert left[-1] < 30, f"{left} blocks after 1,000 calls each"
    assert _C.scratch_live() == live


@pytest.mark.parametrize("name", CALLS)
def test_references_of_the_arguments_are_kept_even(name: str) -> None:
    """An object that each call takes and must give back, an error or not."""
    watched = [QKV, HALF, KV_LEN, FLAGS, LAYER.codes, *WIRES, *MASKS, _C.SparseVDiTError, None]
    before = [sys.getrefcount(one) for one in watched]
    repeat(CALLS[name], 1000)
    after = [sys.getrefcount(one) for one in watched]
    assert all(abs(one - other) < 200 for one, other in zip(before, after, strict=True))


NEED_MEMORY = [
    "visits",
    "visits_from_masks",
    "items",
    "probe",
    "attention",
    "attention, lse",
    "attention_check",
    "attention_pointers",
    "attention_reference",
]


@pytest.mark.parametrize("name", NEED_MEMORY)
def test_each_allocation_may_fail(name: str) -> None:
    """The n-th allocation fails, n = 1, 2, ...: MemoryError with a sentence, nothing left, until the call passes."""
    call, live = CALLS[name], _C.scratch_live()
    expected, failures = call(), 0
    for n in range(1, 200):
        _C.scratch_fail_at(n)
        got, sentence = catch_memory_error(call)
        _C.scratch_fail_at(0)
        if not sentence:
            break
        failures += 1
        assert "could not allocate" in sentence
        assert _C.scratch_live() - live <= _count_pools(expected)
    else:
        raise AssertionError("200 allocations in one call")
    assert failures == n - 1
    assert failures >= 1 or name == "attention_reference"
    if isinstance(expected, tuple):
        assert all(np.array_equal(one, other) for one, other in zip(expected, got, strict=True))
    elif expected is not None:
        assert np.array_equal(expected, got)


def catch_memory_error(call: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return call(), ""
    except MemoryError as error:
        return None, str(error)


def _count_pools(result: Any) -> int:
    """Arrays that own scratch memory: the codes of a visit list."""
    return 1 if isinstance(result, tuple) and result[0].dtype == np.uint32 else 0


def test_codes_own_their_pool() -> None:
    live = _C.scratch_live()
    rows, codes = _C.visits(INTS, WIRES, FLAGS)
    assert len(codes) > 0
    assert _C.scratch_live() == live + 1
    kept = codes[1:]
    del codes, rows
    gc.collect()
    assert _C.scratch_live() == live + 1
    assert kept.sum() > 0
    del kept
    gc.collect()
    assert _C.scratch_live() == live


@pytest.mark.slow
def test_process_memory_stands_still() -> None:
    """Resident memory over many real calls, both doors where torch is there."""
    code = """
        import numpy as np, resource, sparse_vdit as s
        geometry = s.Geometry(frames=2, height=16, width=16, prefix=8)
        layer = s.LayerPlan(geometry, [s.Pattern.full(), s.Pattern.diagonal(half_width=127, remainder=0.5)])
        arrays = [np.ones((1, 2, geometry.tokens, 64), np.float32)]
        try:
            import torch
            arrays.append(torch.ones(1, 2, geometry.tokens, 64))
        except ImportError:
            pass
        def read():
            return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
        def work(n):
            for _ in range(n):
                for q in arrays:
                    s.attention(q, q, q, layer=layer, return_lse=True)
        work(40)
        before = read()
        work(200)
        print((read() - before) >> 20)
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=240,
    )
    assert int(done.stdout) < 16, done.stderr
