"""Builds sparse_vdit._C (C11, NumPy) and, where torch's headers are found, sparse_vdit._torch (C++20, stable ABI).

Needs setuptools and NumPy only; torch is never imported. Every source becomes one object in build/obj-<key>/, with
flags chosen by its suffix and its file name; setuptools finds the compiler, links, names and packs.

Switches: SPARSE_VDIT_TORCH=auto|1|0, SPARSE_VDIT_TORCH_INCLUDE=<dir>, SPARSE_VDIT_CUDA=auto|1|0, MAX_JOBS=<n>.
"""

import hashlib
import importlib.util
import os
import platform
import sys
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

C_SOURCES = [
    "csrc/attention/attention.c",
    "csrc/attention/block_avx2.c",
    "csrc/attention/block_avx512.c",
    "csrc/attention/block_avx512bf16.c",
    "csrc/attention/block_ops.c",
    "csrc/attention/block_portable.c",
    "csrc/attention/engine.c",
    "csrc/attention/pack.c",
    "csrc/attention/peak.c",
    "csrc/attention/reference.c",
    "csrc/attention/remainder.c",
    "csrc/attention/walk.c",
    "csrc/base/cpu.c",
    "csrc/base/parallel.c",
    "csrc/base/scratch.c",
    "csrc/base/status.c",
    "csrc/base/tensor.c",
    "csrc/pattern/diagonal.c",
    "csrc/pattern/full.c",
    "csrc/pattern/geometry.c",
    "csrc/pattern/multi_diagonal.c",
    "csrc/pattern/order.c",
    "csrc/pattern/pattern.c",
    "csrc/pattern/periodic_tiles.c",
    "csrc/pattern/runs.c",
    "csrc/pattern/skip.c",
    "csrc/pattern/union.c",
    "csrc/pattern/vertical_stripe.c",
    "csrc/pattern/visits.c",
    "csrc/pattern/visits_decode.c",
    "csrc/pattern/visits_items.c",
    "csrc/pattern/visits_write.c",
    "csrc/pattern/windows.c",
    "csrc/pyext/api.c",
    "csrc/pyext/attention.c",
    "csrc/pyext/convert.c",
    "csrc/pyext/cost.c",
    "csrc/pyext/errors.c",
    "csrc/pyext/info.c",
    "csrc/pyext/interrupt.c",
    "csrc/pyext/layer.c",
    "csrc/pyext/module.c",
    "csrc/pyext/pointers.c",
    "csrc/pyext/probe.c",
    "csrc/pyext/reference.c",
    "csrc/pyext/select.c",
    "csrc/pyext/torch_runtime.c",
    "csrc/pyext/visits.c",
    "csrc/search/budget.c",
    "csrc/search/cost.c",
    "csrc/search/hardware.c",
    "csrc/search/hulls.c",
    "csrc/search/probe.c",
    "csrc/search/probe_avx2.c",
    "csrc/search/probe_avx512.c",
    "csrc/search/probe_candidates.c",
    "csrc/search/probe_check.c",
    "csrc/search/probe_classes.c",
    "csrc/search/probe_portable.c",
    "csrc/search/probe_rows.c",
    "csrc/search/select_budget.c",
    "csrc/search/select_paper.c",
]
CPP_SOURCES = ["csrc/torchext/module.cpp", "csrc/torchext/ops.cpp"]

FLAGS = {
    ".c": "-std=c11 -O3 -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wconversion",
    ".cpp": "-std=c++20 -O2 -fvisibility=hidden -Wall -Wextra -Wconversion",
}
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c"
ISA = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": AVX512,
    "avx512bf16": AVX512 + " -mavx512bf16",
}  # by file name suffix
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
NO_CUDA = "CUDA kernels are not part of this version"


def stop(sentence: str) -> None:
    raise SystemExit(f"sparse_vdit: {sentence}")


def read_switch(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        stop(f"{name} is {value!r}, expected auto, 1 or 0")
    return value


def find_torch() -> str | None:
    """The folder torch/ whose headers serve: named, importable, of the outer environment, of an activated one."""
    wanted = read_switch("SPARSE_VDIT_TORCH")
    if wanted == "0":
        return None
    spec = importlib.util.find_spec("torch")
    roots = [f"{place}/include" for place in (spec.submodule_search_locations or [])] if spec else []
    roots += [sysconfig.get_paths()["purelib"] + "/torch/include"]
    library = f"lib/python3.{sys.version_info[1]}/site-packages/torch/include"
    roots += [
        str(Path(place).parent / library) for place in os.environ.get("PATH", "").split(os.pathsep) if place
    ]
    named = os.environ.get("SPARSE_VDIT_TORCH_INCLUDE")
    for include in [named] if named else roots:
        if has_stable_abi(include):
            return str(Path(include).parent)
    if wanted == "1" or named:
        stop(
            f"no headers of torch >= 2.10 in {named or 'any environment in sight'}, expected some "
            "(SPARSE_VDIT_TORCH_INCLUDE names their folder)"
        )
    return None


def has_stable_abi(include: str) -> bool:
    """Headers of torch >= 2.10, told by the first macro of that version; torch is not imported."""
    header = Path(include, "torch/csrc/stable/library.h")
    return header.exists() and "TORCH_BOX" in header.read_text()


def is_stale(obj: Path) -> bool:
    """Older than a file of its .d list, or such a file is gone."""
    listed = obj.with_suffix(".d")
    if not (obj.exists() and listed.exists()):
        return True
    files = listed.read_text().replace("\\\n", " ").partition(": ")[2].split()
    return any(not os.path.exists(f) or os.path.getmtime(f) > obj.stat().st_mtime for f in files)


class BuildExt(build_ext):
    """Compiles each source to an object of its own, again only when it or a header it reads has changed."""

    def run(self) -> None:
        built = {extension.name.partition(".")[2] for extension in self.extensions}
        for folder in ("sparse_vdit", Path(self.build_lib, "sparse_vdit")):
            for old in Path(folder).glob("_*.so"):
                if old.name.partition(".")[0] not in built:
                    old.unlink()  # else a module of an earlier build, switched off since, would be packed
        super().run()

    def build_extension(self, ext: Extension) -> None:
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            ext.extra_objects = list(pool.map(lambda source: self.compile_one(source, ext), ext.sources))
        ext.depends, ext.sources = list(ext.extra_objects), []
        super().build_extension(ext)

    def compile_one(self, source: str, ext: Extension) -> str:
        stem, suffix = Path(source).stem, Path(source).suffix
        user = os.environ.get("CFLAGS" if suffix == ".c" else "CXXFLAGS", "")
        flags = [*FLAGS[suffix].split(), *ISA.get(stem.rpartition("_")[2], "").split()]
        flags += [*ext.extra_compile_args, *user.split()]
        if suffix == ".c":
            flags.append(
                "-Werror=implicit-function-declaration"
            )  # a macro outside the limited API must not wait for the import
        compiler = [os.environ.get("CC"), getattr(self.compiler, "compiler_so", None)]
        key = hashlib.sha256(
            repr([flags, ext.define_macros, ext.include_dirs, sys.version, compiler]).encode()
        )
        folder = f"build/obj-{key.hexdigest()[:10]}"
        obj = Path(folder, source).with_suffix(".o")
        if self.force or is_stale(obj):
            obj.parent.mkdir(parents=True, exist_ok=True)
            options = [*flags, "-MD", "-MF", str(obj.with_suffix(".d"))]
            try:
                self.compiler.compile(
                    [source], folder, ext.define_macros, ext.include_dirs, extra_postargs=options
                )
            except CompileError:
                if suffix == ".cpp":
                    stop(
                        f"{source} does not compile, expected a C++20 compiler; SPARSE_VDIT_TORCH=0 builds without it"
                    )
                raise
        return str(obj)


def read_version() -> str:
    with open("pyproject.toml", "rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def list_c_sources() -> list[str]:
    return [s for s in C_SOURCES if IS_X86 or Path(s).stem.rpartition("_")[2] not in ISA]


def make_extensions() -> list[Extension]:
    if not sys.platform.startswith("linux"):
        stop(f"the system is {sys.platform}, expected linux (x86-64 first, aarch64 by the portable engine)")
    if read_switch("SPARSE_VDIT_CUDA") == "1":
        stop(f"SPARSE_VDIT_CUDA is 1, expected auto or 0: {NO_CUDA}")
    limited = [("Py_LIMITED_API", "0x030b0000")] if ABI3 else []
    arrays = [("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"), ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]
    arrays += [("PY_ARRAY_UNIQUE_SYMBOL", "svpy_array_api"), ("SV_NO_CUDA_REASON", f'"{NO_CUDA}"')]
    arrays += [("SV_VERSION", f'"{read_version()}"')]
    common = {"py_limited_api": ABI3, "extra_link_args": ["-Wl,-z,now", "-pthread"]}
    modules = [
        Extension(
            "sparse_vdit._C",
            list_c_sources(),
            include_dirs=["csrc", numpy.get_include()],
            define_macros=limited + arrays,
            libraries=["m", "dl"],
            **common,
        )
    ]
    if torch := find_torch():
        modules.append(
            Extension(
                "sparse_vdit._torch",
                list(CPP_SOURCES),
                language="c++",
                include_dirs=["csrc"],
                extra_compile_args=["-isystem", torch + "/include"],  # its warnings are not ours
                define_macros=[
                    *limited,
                    ("TORCH_TARGET_VERSION", "0x020a000000000000"),
                    ("TORCH_STABLE_ONLY", "1"),
                ],
                library_dirs=[torch + "/lib"],
                libraries=["torch_cpu"],
                **common,
            )
        )
    return modules


if __name__ == "__main__":
    setup(
        ext_modules=make_extensions(),
        cmdclass={"build_ext": BuildExt},
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
    )
