"""The build: what is exported, what is listed, what it needs, and what its switches say."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import pytest

import sparse_vdit
from sparse_vdit import _C

ROOT = Path(__file__).parent.parent
has_sources = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="build: the source tree is not here"
)
LEVELS = ["portable", "avx2", "avx512", "avx512bf16"]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter outside the source tree."""
    environ = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environ, cwd="/"
    )


def listed_sources(name: str) -> list[str]:
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")


def run_setup(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py, run as a module: nothing is built."""
    monkeypatch.chdir(ROOT)
    return runpy.run_path("setup.py", run_name="setup_as_module")


# ---- sources and symbols ----


@has_sources
@pytest.mark.parametrize(("name", "suffix"), [("C_SOURCES", ".c"), ("CPP_SOURCES", ".cpp")])
def test_source_list_is_what_lies_on_disk(name: str, suffix: str) -> None:
    listed = listed_sources(name)
    on_disk = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(f"*{suffix}"))
    assert sorted(listed) == on_disk
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("name", ["_C", "_torch"])
def test_exports_only_its_init_function(name: str) -> None:
    found = list(Path(sparse_vdit.__file__).parent.glob(f"{name}.*.so"))
    if not found and name == "_torch":
        pytest.skip("build: _torch was not built here")
    text = subprocess.run(
        ["nm", "-D", "--defined-only", found[0]], capture_output=True, text=True, check=True
    ).stdout
    strong = [line.split()[-1] for line in text.splitlines() if line.split()[-2] in "TDBR"]
    assert [symbol for symbol in strong if not symbol.startswith("_") or symbol.startswith("_Z")] == [
        f"PyInit_{name}"
    ]


def test_needs_only_system_libraries() -> None:
    (found,) = Path(sparse_vdit.__file__).parent.glob("_C.*.so")
    text = subprocess.run(["readelf", "-d", found], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.+?)\]", text))
    assert needed <= {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2"}, (
        needed
    )


@has_sources
def test_isa_flags_follow_the_file_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_setup(monkeypatch)
    assert set(names["ISA"]) == {"avx2", "avx512", "avx512bf16"}
    everything = " ".join([*names["ISA"].values(), *names["FLAGS"].values()])
    assert "march" not in everything
    assert "openmp" not in everything
    assert "fast-math" not in everything
    monkeypatch.setitem(names["list_c_sources"].__globals__, "IS_X86", False)
    portable = names["list_c_sources"]()
    assert portable
    assert not [source for source in portable if re.search(r"_(avx2|avx512|avx512bf16)\.c$", source)]


# ---- what the build needs ----


def test_numpy_door_works_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None      # any import of it fails from here on
import numpy as np, sparse_vdit
from sparse_vdit import Geometry, LayerPlan, Pattern, attention
geometry = Geometry(frames=2, height=4, width=4, block_q=16, block_k=16)
q = np.ones((1, 1, 32, 64), np.float32)
print(float(attention(q, q, q, layer=LayerPlan(geometry, [Pattern.full()])).mean()), "diffusers" in sys.modules)
"""
    done = run_python(code)
    assert done.stdout.split() == ["1.0", "False"], done.stderr


@has_sources
def test_setup_finds_torch_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    header = package / "include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define TORCH_BOX(func) func\n")
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.setenv("SPARSE_VDIT_TORCH_INCLUDE", str(package / "include"))
    find_torch = run_setup(monkeypatch)["find_torch"]
    assert find_torch() == str(package)
    monkeypatch.setenv("SPARSE_VDIT_TORCH", "0")
    assert find_torch() is None
    monkeypatch.setenv("SPARSE_VDIT_TORCH", "1")
    header.write_text("/* older than 2.10 */\n")
    with pytest.raises(SystemExit, match=r"sparse_vdit: no headers of torch >= 2.10 in .*"):
        find_torch()


@has_sources
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "SPARSE_VDIT_CUDA",
            "1",
            "SPARSE_VDIT_CUDA is 1, expected auto or 0: CUDA kernels are not part of this version",
        ),
        ("SPARSE_VDIT_CUDA", "yes", "SPARSE_VDIT_CUDA is 'yes', expected auto, 1 or 0"),
        ("SPARSE_VDIT_TORCH", "on", "SPARSE_VDIT_TORCH is 'on', expected auto, 1 or 0"),
    ],
)
def test_switches_refuse_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        run_setup(monkeypatch)["make_extensions"]()
    assert str(stop.value) == f"sparse_vdit: {sentence}"


@has_sources
def test_other_systems_get_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    make_extensions = run_setup(monkeypatch)["make_extensions"]
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit) as stop:
        make_extensions()
    assert str(stop.value).startswith("sparse_vdit: the system is darwin, expected linux")


@has_sources
@pytest.mark.slow
def test_source_archive_is_complete(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns(
        ".git", "build", "dist", "*.egg-info", ".*cache", ".venv*", ".runs", "*.so", "sparse-vdit-demo"
    )
    shutil.copytree(ROOT, tree, ignore=skip)
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    wanted = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.[ch]*")]
    wanted += [
        Path("setup.py"),
        Path("pyproject.toml"),
        Path("sparse_vdit/_C.pyi"),
        Path("sparse_vdit/py.typed"),
        Path("sparse_vdit/report/templates/page.html"),
        Path("benchmarks/bench.py"),
        Path("tests/kit/block_counts.json"),
        Path("tests/run"),
        Path(".ci/run"),
    ]
    assert not [str(path) for path in wanted if str(path) not in packed]
    assert not [name for name in packed if name.endswith((".so", ".o", ".pyc"))]


@has_sources
@pytest.mark.slow
def test_by_hand_line_of_the_c_readme_works(tmp_path: Path) -> None:
    """The line is taken from csrc/README.md, word by word; its products go where it says, in a copy."""
    text = (ROOT / "csrc/README.md").read_text().replace("\\\n", " ")
    lines = [
        line.strip().removeprefix("$ ") for line in text.splitlines() if re.match(r"\s*(\$ )?gcc ", line)
    ]
    assert lines, "csrc/README.md has no line that begins with gcc"
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "tests/c", tmp_path / "tests/c")
    for line in lines:
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


# ---- the package ----


def test_version_is_said_once() -> None:
    assert sparse_vdit.build_info()["version"] == sparse_vdit.__version__ == "0.1.0"
    if (ROOT / "pyproject.toml").is_file():
        assert f'version = "{sparse_vdit.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_shop_window() -> None:
    assert callable(sparse_vdit.attention)
    assert sparse_vdit.attention.__module__ == "sparse_vdit.attention"
    code = "import sparse_vdit as s; print(all(hasattr(s, name) for name in s.__all__))"
    pytest.importorskip("diffusers")
    assert run_python(code).stdout.strip() == "True"
    with pytest.raises(AttributeError, match="module 'sparse_vdit' has no attribute 'nothing'"):
        sparse_vdit.nothing  # noqa: B018


def test_the_shop_window_is_whole_without_torch() -> None:
    names = "apply, remove, applied, explain, observe, attention, LayerPlan, SparsePlan"
    code = f"""if True:
        import sys
        sys.modules["torch"] = None
        from sparse_vdit import {names}
        try:
            apply(None, None)
        except ModuleNotFoundError as error:
            print(error)
    """
    sentence = "apply: torch is not installed, expected it (pip install 'sparse-vdit[diffusers]')"
    assert run_python(code).stdout.strip() == sentence


def test_stub_and_module_have_the_same_names() -> None:
    stub = Path(sparse_vdit.__file__).parent / "_C.pyi"
    public = (ast.FunctionDef, ast.ClassDef)
    described = {node.name for node in ast.parse(stub.read_text()).body if isinstance(node, public)}
    assert described | {"_api"} == {name for name in dir(_C) if not name.startswith("__")}


def test_build_info_says_what_is_there() -> None:
    info = sparse_vdit.build_info()
    assert info["isa"] in LEVELS
    assert LEVELS.index(info["isa"]) <= LEVELS.index(info["isa_best"])
    assert info["with_cuda"] is False
    assert info["without_cuda_because"] == "CUDA kernels are not part of this version"
    assert info["threads"] >= 1
    assert info["pool"] in ("own", "torch")
    assert set(info["engines"]) == {
        f"{t} d{d}" for t in ("float32", "bfloat16", "float16") for d in (64, 128)
    }


# ---- SPARSE_VDIT_ISA ----


@pytest.mark.parametrize("level", LEVELS)
def test_isa_is_lowered_by_the_environment_never_raised(level: str) -> None:
    best = sparse_vdit.build_info()["isa_best"]
    code = "import sparse_vdit as s; i = s.build_info(); print(i['isa'], i['isa_env'], i['isa_best'])"
    expected = LEVELS[min(LEVELS.index(level), LEVELS.index(best))]
    assert run_python(code, SPARSE_VDIT_ISA=level).stdout.split() == [expected, level, best]


@pytest.mark.parametrize("word", ["sse9", "AVX2 ", "native"])
def test_unknown_isa_is_one_sentence(word: str) -> None:
    code = """
import numpy as np, sparse_vdit as s
layer = s.LayerPlan(s.Geometry(frames=1, height=4, width=4, block_q=16, block_k=16), [s.Pattern.full()])
q = np.ones((1, 1, 16, 64), np.float32)
for call in (s.build_info, lambda: s.attention(q, q, q, layer=layer)):
    try: call()
    except ValueError as error: print(error)
"""
    lines = run_python(code, SPARSE_VDIT_ISA=word).stdout.splitlines()
    assert len(lines) == 2, lines
    for line in lines:
        assert re.fullmatch(rf"SPARSE_VDIT_ISA(:| is) .*{word.strip()}.*, expected .*portable.*", line), line


def test_headers_of_python_are_of_the_limited_api() -> None:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("build: the free-threaded build has no limited API")
    assert [path.name for path in Path(sparse_vdit.__file__).parent.glob("_C.*.so")] == ["_C.abi3.so"]
