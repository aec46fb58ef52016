"""Beside inputs and output a call needs memory proportional to the tokens, never to their square."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import resource, sys
import numpy as np
from sparse_vdit import Geometry, LayerPlan, Pattern, _C, attention

frames = int(sys.argv[1])
_C.set_threads(2)
geometry = Geometry(frames=frames, height=32, width=32)
layer = LayerPlan(geometry, [Pattern.diagonal(half_width=63, remainder=0.0)] * 2)
layer.items()
q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, geometry.tokens, 64)).astype(np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attention(q, k, v, layer=layer)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def grown_bytes(frames: int, folder: Path) -> int:
    command = [sys.executable, "-P", "-c", SCRIPT, str(frames)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=240)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_is_linear_in_tokens(tmp_path: Path) -> None:
    """Of 65,536 tokens one bit per pair would be 512 MiB. Output, packed keys and values: three arrays like q, and the
    block means a fraction more; rooms of threads and huge pages do not grow."""
    tokens = 64 * 1024
    array = 2 * tokens * 64 * 4
    assert grown_bytes(64, tmp_path) < 4 * array + 32 * 2**20
