"""Threads: the same bits whatever their number, Ctrl-C in every long call, callers side by side, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sparse_vdit import _C, Geometry, LayerPlan, Pattern, attention

GEOMETRY = Geometry(frames=6, height=10, width=12, prefix=5, suffix=9, block_q=64, block_k=32)
LAYER = LayerPlan(
    GEOMETRY,
    [
        Pattern.full(),
        Pattern.diagonal(half_width=63, remainder=0.25),
        Pattern.multi_diagonal(half_width=15, remainder=-0.5),
        Pattern.skip(),
    ],
)
needs_torch = pytest.mark.skipif(
    not any(os.path.isdir(os.path.join(place, "torch")) for place in sys.path),
    reason="threads: torch is not installed",
)


def make(seed: int = 0, batch: int = 2, dtype: Any = np.float32) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, 4, GEOMETRY.tokens, 64)).astype(dtype) for _ in range(3)]


# A run in the background of a shell inherits an ignored SIGINT, which Python then leaves alone.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **environment}
    command = [sys.executable, "-P", "-c", HEARS_CTRL_C + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd="/", timeout=240)


@pytest.fixture
def _automatic_threads() -> Iterator[None]:
    yield
    _C.set_threads(0)


@pytest.mark.isa
@pytest.mark.usefixtures("_automatic_threads")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_same_bits_for_any_number_of_threads(dtype: Any) -> None:
    q, k, v = make(dtype=dtype)
    found = []
    for n in (1, 2, 7):
        _C.set_threads(n)
        found.append(attention(q, k, v, layer=LAYER, return_lse=True))
    for out, lse in found[1:]:
        assert np.array_equal(out, found[0][0])
        assert np.array_equal(lse, found[0][1])


@needs_torch
def test_same_bits_on_both_pools() -> None:
    done = run_python("""
        import numpy as np, sparse_vdit as s
        layer = s.LayerPlan(s.Geometry(frames=4, height=10, width=12, suffix=9, block_q=64, block_k=32),
                            [s.Pattern.diagonal(half_width=63, remainder=0.25)] * 3)
        q = np.random.default_rng(0).standard_normal((1, 3, 489, 64)).astype(np.float32)
        own, pools = s.attention(q, q, q, layer=layer), [s.build_info()["pool"]]
        import torch, sparse_vdit.ops
        pools.append(s.build_info()["pool"])
        same = []
        for n in (1, 2, 7):
            torch.set_num_threads(n)
            same.append(s.build_info()["threads"] == n and np.array_equal(own, s.attention(q, q, q, layer=layer)))
        print(*pools, *same)
    """)
    assert done.stdout.split() == ["own", "torch", "True", "True", "True"], done.stdout + done.stderr


def test_threads_follow_the_environment() -> None:
    code = "import sparse_vdit as s; print(s.build_info()['threads'])"
    assert run_python(code, SPARSE_VDIT_THREADS="3").stdout.strip() == "3"
    assert run_python(code, OMP_NUM_THREADS="2").stdout.strip() == "2"
    wrong = run_python(code, SPARSE_VDIT_THREADS="many").stderr.splitlines()[-1]
    assert wrong == "ValueError: SPARSE_VDIT_THREADS: got many, expected a number in 1..256"


def test_callers_side_by_side() -> None:
    inputs = [make(seed) for seed in range(4)]
    expected = [attention(*qkv, layer=LAYER) for qkv in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(15):
            if not np.array_equal(attention(*inputs[number], layer=LAYER), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_threads_run_meanwhile() -> None:
    """Without the GIL a Python thread counts while a call runs."""
    geometry = Geometry(frames=8, height=32, width=32)
    layer = LayerPlan(geometry, [Pattern.full()] * 2)
    q = np.ones((1, 2, geometry.tokens, 64), np.float32)
    counted, is_running = [0], threading.Event()

    def count() -> None:
        is_running.set()
        while is_running.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    is_running.wait()
    before = counted[0]
    attention(q, q, q, layer=layer)
    during = counted[0] - before
    is_running.clear()
    thread.join()
    assert during > 1000


# ---- interrupts ----

INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np, sparse_vdit as s
from sparse_vdit import _C

sent = [0.0]
def later(signal_number, delay):
    def send():
        sent[0] = time.perf_counter()
        os.kill(os.getpid(), signal_number)
    threading.Timer(delay, send).start()

geometry = s.Geometry(frames=16, height=64, width=64)
layer = s.LayerPlan(geometry, [s.Pattern.full()] * 8)
layer.items()
q = np.ones((1, 8, geometry.tokens, 64), np.float32)
fine = s.Geometry(frames=33, height=90, width=160, block_q=16, block_k=16)
wire = s.Pattern.periodic_tiles(tile=(1, 4, 4), time=(2, 0, None), space=(2, 5, 7)).to_ints()
wide = s.Geometry(frames=128, height=1024, width=1024)
small = np.ones((1, 8, 12000, 64), np.float32)
calls = {
    "attention": lambda: s.attention(q, q, q, layer=layer),
    "visits": lambda: _C.visits(fine.to_ints(), [wire] * 1000, np.zeros(1000, bool)),
    "places": lambda: _C.places(wide.to_ints(), (2, 1, 2, 2)),  # 1 GB
    "fma_peak": lambda: _C.fma_peak("float32", 30.0),
    "reference": lambda: _C.attention_reference(small, small, small, None, None, 0.125),
}
if "torch" in sys.argv[1]:
    import torch
    from sparse_vdit import ops
    torch.set_num_threads(2)
    t = torch.from_numpy(q)
    packed, bin = ops.PackedLayer.from_arrays(layer.packed()), torch.zeros(1, dtype=torch.int64)
    rest = (*packed[:5], bin, list(packed.geometry), 0.125, None, False)
    direct = lambda: torch.ops.sparse_vdit.attention(t, t, t, *rest)
    calls["torch"] = lambda: s.attention(t, t, t, layer=layer)
    calls["torch operator"] = direct
    calls["torch no_grad"] = torch.no_grad()(direct)
    attend = lambda t, p: ops.attention_layer(t, t, t, p, bin, 0.125)
    graph = torch.compile(attend, backend="aot_eager", fullgraph=True)
    calls["torch compiled"] = lambda: graph(t, packed)
    if sys.argv[1] == "torch compiled":  # compiled beforehand, on lists without items
        graph(t, packed._replace(items=torch.full_like(packed.items, -1)))
call = calls[sys.argv[1]]
"""

INTERRUPT_MAIN = (
    INTERRUPTED
    + """
later(signal.SIGINT, 0.4)
try:
    call()
    print("finished")
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0], _C.scratch_live())
"""
)

OTHER_SIGNAL = (
    INTERRUPTED
    + """
class Late(Exception): pass
def handler(*_): raise Late("out of time")
signal.signal(signal.SIGALRM, handler)
later(signal.SIGALRM, 0.3)
try:
    call()
    print("finished")
except Late as error:
    print(error)
harmless = []
signal.signal(signal.SIGALRM, lambda *_: harmless.append(1))
q, t = q[:, :, :4096], None
layer = s.LayerPlan(s.Geometry(frames=4, height=32, width=32), [s.Pattern.full()] * 8)
signal.setitimer(signal.ITIMER_REAL, 0.02)
s.attention(q, q, q, layer=layer)
print("handled", len(harmless))
"""
)


def interrupt(code: str, call: str) -> list[str]:
    command = [sys.executable, "-P", "-c", HEARS_CTRL_C + code, call]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=240)
    assert not done.stderr, done.stderr
    return done.stdout.split("\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        "attention",
        "visits",
        "places",
        "reference",
        "fma_peak",
        *(
            pytest.param(name, marks=needs_torch)
            for name in ("torch", "torch operator", "torch no_grad", "torch compiled")
        ),
    ],
)
def test_ctrl_c_in_a_long_call(call: str) -> None:
    """0.3 s is a promise to users; a machine busy with other programs may hold one try up, hardly three."""
    for _ in range(3):
        said = interrupt(INTERRUPT_MAIN, call)[0].split()
        assert said != ["finished"], "the call ended before the signal came: too short for this machine"
        seconds, live = float(said[0]), int(said[1])
        assert live == 0
        if seconds < 0.3:
            return
    raise AssertionError(f"{call}: Ctrl-C took {seconds:.2f} s, expected less than 0.3")


@pytest.mark.slow
@pytest.mark.parametrize("call", ["attention", pytest.param("torch", marks=needs_torch)])
def test_other_signals_raise_what_their_handlers_raise(call: str) -> None:
    assert interrupt(OTHER_SIGNAL, call)[:2] == ["out of time", "handled 1"]


def test_a_thread_that_is_not_the_main_one_ends_its_work() -> None:
    """Python runs handlers in the main thread only: a call elsewhere is not cut short, and nothing is lost."""
    done = run_python("""
        import os, signal, threading, time
        import numpy as np, sparse_vdit as s
        geometry = s.Geometry(frames=8, height=32, width=32)
        layer, q = s.LayerPlan(geometry, [s.Pattern.full()]), np.ones((1, 1, geometry.tokens, 64), np.float32)
        kept = []
        thread = threading.Thread(target=lambda: kept.append(s.attention(q, q, q, layer=layer)))
        thread.start()
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(10**9): pass
        except KeyboardInterrupt:
            thread.join()
            print(kept[0].shape == q.shape)
    """)
    assert done.stdout.strip() == "True", done.stderr


# ---- forks ----

FORK = """
import os, sys, time
import numpy as np, sparse_vdit as s
from sparse_vdit import _C
geometry = s.Geometry(frames=4, height=16, width=16, block_q=64, block_k=64)
layer = s.LayerPlan(geometry, [s.Pattern.full(), s.Pattern.diagonal(half_width=63, remainder=0.0)])
q = np.random.default_rng(0).standard_normal((1, 2, geometry.tokens, 64)).astype(np.float32)
_C.set_threads(2 if {pool!r} == "own" else 0)
if {pool!r} == "torch":
    import torch, sparse_vdit.ops
    torch.set_num_threads(2)
expected = s.attention(q, q, q, layer=layer)
assert s.build_info()["pool"] == {pool!r}
for _ in range(5):
    child = os.fork()
    if child == 0:
        _C.set_threads(2)
        same = np.array_equal(s.attention(q, q, q, layer=layer), expected)
        os._exit(0 if same and s.build_info()["pool"] == "own" else 1)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        sys.exit("the child hangs")
    assert status == 0, status
    assert np.array_equal(s.attention(q, q, q, layer=layer), expected)
print("passed", s.build_info()["pool"])
"""


@pytest.mark.parametrize("pool", ["own", pytest.param("torch", marks=needs_torch)])
def test_a_forked_child_has_a_pool_of_its_own(pool: str) -> None:
    done = run_python(FORK.replace("{pool!r}", repr(pool)))
    assert done.stdout.split() == ["passed", pool], done.stdout + done.stderr


@needs_torch
def test_torch_bound_in_a_child_is_ignored() -> None:
    done = run_python("""
        import os, sparse_vdit as s
        import torch, sparse_vdit.ops
        child = os.fork()
        if child == 0:
            s._C._bind_torch()
            os._exit(0 if s.build_info()["pool"] == "own" else 1)
        print(os.waitpid(child, 0)[1], s.build_info()["pool"])
    """)
    assert done.stdout.split() == ["0", "torch"], done.stderr


@pytest.mark.slow
def test_forks_during_use() -> None:
    """A thread computes while the main thread forks: each child finds locks that are free."""
    done = run_python("""
        import os, threading
        import numpy as np, sparse_vdit as s
        from sparse_vdit import _C
        _C.set_threads(3)
        geometry = s.Geometry(frames=4, height=16, width=16, block_q=64, block_k=64)
        layer = s.LayerPlan(geometry, [s.Pattern.full()])
        q = np.ones((1, 1, geometry.tokens, 64), np.float32)
        layer.items()
        stop = threading.Event()
        def work():
            while not stop.is_set():
                s.attention(q, q, q, layer=layer)
        thread = threading.Thread(target=work)
        thread.start()
        good = 0
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if s.attention(q, q, q, layer=layer).mean() == 1.0 else 1)
            good += os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
        print(good)
    """)
    assert done.stdout.strip() == "20", done.stderr
