"""Two processes over gloo, as torchrun starts them: the same bytes as one process, whatever disks they have."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import geometry_of  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern  # noqa: E402
from sparse_vdit.search import Candidates, HeadErrors, Recorder, Sample, models_of, record  # noqa: E402
from sparse_vdit.search import journal as journal_module  # noqa: E402
from sparse_vdit.search.distributed import Ranks  # noqa: E402

pytestmark = pytest.mark.models
SAMPLES = tuple(Sample(f"prompt {number}", number) for number in range(3))


def search(out: Path, small: tiny.Tiny, **options: Any) -> dict[str, HeadErrors]:
    patterns = (Pattern.full(), Pattern.diagonal(half_width=0), Pattern.multi_diagonal(half_width=3))
    made = Recorder(
        models_of(small.pipe),
        Candidates(geometry_of(small), patterns, (1, 2)),
        (0.0, 0.5, 1.0),
        rows=8,
        power=1,
    )
    return record(
        small.pipe,
        SAMPLES,
        out,
        recorder=made,
        observe=sparse_vdit.observe,
        generate=lambda pipe, sample: small.run(seed=sample.seed),
        progress=False,
        **options,
    )


def started(rank: int, port: int, act: Callable[[int], object]) -> int:
    """One of two processes, with the environment that torchrun gives it."""
    child = os.fork()
    if child == 0:
        try:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            torch.set_num_threads(1)
            act(rank)
            os._exit(0)
        finally:
            os._exit(77)
    return child


def together(act: Callable[[int], object]) -> list[int]:
    """Runs both to their end; like torchrun, kills the other when one dies. Returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = {started(rank, port, act): rank for rank in range(2)}
    codes = [0, 0]
    deadline = time.monotonic() + 300
    while running:
        child, status = os.waitpid(-1, os.WNOHANG) if time.monotonic() < deadline else (0, 0)
        if child in running:
            codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= deadline or any(codes):
            for other in running:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    assert time.monotonic() < deadline, "the processes wait for one another"
    return codes


@pytest.fixture(scope="module")
def small() -> tiny.Tiny:
    torch.set_num_threads(1)
    return tiny.wan(layers=1)


@pytest.fixture(scope="module")
def whole(small: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("alone") / "errors.safetensors"
    search(out, small)
    return out.read_bytes()


def test_two_processes_on_one_disk(small: tiny.Tiny, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "errors.safetensors"

    def act(rank: int) -> None:
        found = search(out, small)
        assert bool(found) == (rank == 0)
        (tmp_path / f"prompts-{rank}").write_text(str(sorted(found)))

    assert together(act) == [0, 0]
    assert out.read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == ["errors.safetensors", "prompts-0", "prompts-1"]


def test_two_machines_with_disks_of_their_own(small: tiny.Tiny, whole: bytes, tmp_path: Path) -> None:
    assert together(lambda rank: search(tmp_path / str(rank) / "errors.safetensors", small)) == [0, 0]
    assert os.listdir(tmp_path / "0") == ["errors.safetensors"]
    assert os.listdir(tmp_path / "1") == []
    assert (tmp_path / "0" / "errors.safetensors").read_bytes() == whole


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_killed(victim: int, small: tiny.Tiny, whole: bytes, tmp_path: Path) -> None:
    """After its first step; both start again, and one process alone could go on too."""
    out = tmp_path / "errors.safetensors"

    def dies(rank: int) -> None:
        real = journal_module.Journal.append

        def append(journal: Any, data: bytes) -> None:
            real(journal, data)
            if rank == victim and len(data) > 400:
                os.kill(os.getpid(), signal.SIGKILL)

        journal_module.Journal.append = append  # type: ignore[method-assign]
        search(out, small)

    assert together(dies)[victim] == -signal.SIGKILL
    alone = tmp_path / "alone"
    shutil.copytree(out.with_name("errors.safetensors.parts"), alone / "errors.safetensors.parts")
    assert together(lambda rank: search(out, small)) == [0, 0]
    assert out.read_bytes() == whole
    search(alone / "errors.safetensors", small)
    assert (alone / "errors.safetensors").read_bytes() == whole


def test_prompts_are_split() -> None:
    assert [list(Ranks(rank, 3).mine(7)) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    with pytest.raises(
        ValueError, match="distributed: there are 3 processes for 2 prompts, expected at most as many"
    ):
        Ranks(0, 3).mine(2)
    alone = Ranks.from_environment()
    array = np.arange(3, dtype=np.int32)
    assert alone.share(array) is array
    assert alone.union(array) is array
