"""Builds tests/c under AddressSanitizer and UBSan and runs every test at each ISA level the machine has.

ASan does not see masked AVX-512 overruns, so the C tests end their buffers at a guard page themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = sorted(path.stem for path in (ROOT / "tests" / "c").glob("test_*.c"))
LEVELS = ["portable", "avx2", "avx512", "avx512bf16"]
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
    "avx512bf16": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma", "-mf16c"],
}
CORE = ("base", "pattern", "attention", "search")
WARNINGS = ["-Wall", "-Wextra", "-Wno-override-init", "-Werror"]
FLAGS = ["-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
FLAGS += ["-ffp-contract=off", "-DSV_TESTING"]

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="C units: the source tree is not here")


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, text=True, capture_output=True, cwd=ROOT, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The core, one object per source, with sanitizers."""
    folder = tmp_path_factory.mktemp("core")

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.parent.name}_{source.stem}.o"
        flags = ISA_FLAGS.get(source.stem.rpartition("_")[2], [])
        done = run(["gcc", *FLAGS, *flags, "-Icsrc", "-c", str(source), "-o", str(target)])
        assert done.returncode == 0, done.stderr
        return target

    sources = [path for room in CORE for path in (ROOT / "csrc" / room).glob("*.c")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sorted(sources)))


@pytest.fixture(scope="session")
def programs(objects: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("units")

    def link_one(name: str) -> Path:
        ends = [*map(str, objects), "-lm", "-lpthread", "-o", str(folder / name)]
        done = run(["gcc", *FLAGS, *WARNINGS, "-Icsrc", f"tests/c/{name}.c", *ends])
        assert done.returncode == 0, done.stderr
        return folder / name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(TESTS, pool.map(link_one, TESTS), strict=True))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", TESTS)
def test_unit(name: str, level: str, programs: dict[str, Path]) -> None:
    import sparse_vdit

    best = sparse_vdit.build_info()["isa_best"]
    if LEVELS.index(level) > LEVELS.index(best):
        pytest.skip(f"C units: this CPU has no {level}")
    done = run(
        [str(programs[name])],
        env={**os.environ, "SPARSE_VDIT_ISA": level, "UBSAN_OPTIONS": "print_stacktrace=1"},
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="no aarch64 cross compiler")
def test_the_portable_path_compiles_for_aarch64() -> None:
    for room in CORE:
        for source in sorted((ROOT / "csrc" / room).glob("*.c")):
            if source.stem.rpartition("_")[2] not in ISA_FLAGS:
                done = run(
                    [
                        "aarch64-linux-gnu-gcc",
                        *WARNINGS,
                        "-std=c11",
                        "-O1",
                        "-Icsrc",
                        "-c",
                        str(source),
                        "-o",
                        os.devnull,
                    ]
                )
                assert done.returncode == 0, done.stderr
