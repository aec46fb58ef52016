"""The house stands as drawn: arrows downward only, small rooms, no banned calls, one name per noun in every room."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="house: the source tree is not here")

# Which C room may include which (besides itself and system headers).
C_ARROWS: dict[str, set[str]] = {
    "base": set(),
    "pattern": {"base"},
    "attention": {"base", "pattern"},
    "search": {"base", "pattern", "attention"},
    "pyext": {"base", "pattern", "attention", "search"},
    "torchext": {"base", "pattern", "attention/attention.h", "pyext/api.h"},
}
CORE = ("base", "pattern", "attention", "search")
# Which Python room may import which. A room is a module or a folder of sparse_vdit.
PYTHON_ARROWS: dict[str, set[str]] = {
    "errors": {"_C"},
    "geometry": {"_C"},
    "pattern": {"geometry", "errors", "_C"},
    "plan": {"geometry", "pattern", "errors", "_C"},
    "presets": {"geometry", "pattern", "plan"},
    "ops": {"plan", "pattern", "errors", "_C", "_torch"},
    "attention": {"ops", "plan", "pattern", "errors", "_C"},
    "search": {"attention", "geometry", "pattern", "plan", "presets", "errors", "info", "_C"},
    "verify": {
        "search",
        "models",
        "report",
        "attention",
        "plan",
        "pattern",
        "geometry",
        "presets",
        "errors",
        "info",
        "_C",
    },
    "info": {"_C", "_torch", "errors"},
    "models": {"ops", "plan", "errors", "info", "_C"},
    "report": {"plan", "pattern", "geometry", "errors"},
    "demo": {
        "search",
        "verify",
        "models",
        "report",
        "attention",
        "plan",
        "presets",
        "pattern",
        "geometry",
        "errors",
        "info",
    },
}
ANY_DOOR = {"cli", "__main__", "__init__"}
MAX_LINES, MAX_INIT_LINES, MAX_C_FUNCTION_LINES = 600, 40, 50
# C functions that may be longer than MAX_C_FUNCTION_LINES, with the reason.
LONG_C_FUNCTIONS: dict[str, str] = {}


def sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern) if "build" not in path.parts)


def tracked() -> list[Path]:
    if not shutil.which("git"):
        pytest.skip("house: no git here")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("house: not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("room", C_ARROWS)
def test_c_includes_point_downward(room: str) -> None:
    files = sources(f"csrc/{room}/*.[ch]", f"csrc/{room}/*.cpp")
    assert files, f"csrc/{room} is empty"
    for path in files:
        for target in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
            top = target.split("/")[0]
            allowed = top == room or top in C_ARROWS[room] or target in C_ARROWS[room]
            assert allowed, f"{path.relative_to(ROOT)} includes {target}, which lies beside or above it"


def test_core_knows_no_python_numpy_torch_cuda() -> None:
    for path in sources(*(f"csrc/{room}/*.[ch]" for room in CORE)):
        for target in re.findall(r"^\s*#\s*include\s+[<\"]([^>\"]+)", path.read_text(), re.M):
            assert not re.match(r"(Python|numpy|torch|cuda|ATen|c10)", target), (
                f"{path.relative_to(ROOT)} includes {target}"
            )


def imported_rooms(path: Path) -> set[str]:
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            names = [*base, *(node.module or "").split(".")] if node.module else list(base)
            found |= {
                ([*names, alias.name])[1]
                for alias in node.names
                if ([*names, alias.name])[0] == "sparse_vdit"
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sparse_vdit":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("sparse_vdit.")}
    return found


def test_python_imports_point_downward() -> None:
    rooms = {path.stem for path in ROOT.glob("sparse_vdit/*.py")} | {
        p.name for p in ROOT.glob("sparse_vdit/*") if p.is_dir() and any(p.glob("*.py"))
    }
    for path in sources("sparse_vdit/**/*.py"):
        parts = path.relative_to(ROOT / "sparse_vdit").with_suffix("").parts
        room = parts[0]
        if room in ANY_DOOR:
            continue
        assert room in PYTHON_ARROWS, f"sparse_vdit/{room} has no row in PYTHON_ARROWS"
        above = (imported_rooms(path) & (rooms | {"_C", "_torch"})) - PYTHON_ARROWS[room] - {room}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}, which lie beside or above it"


def test_importing_the_package_is_light() -> None:
    heavy = ("torch", "diffusers", "matplotlib", "safetensors")
    code = f"import sys, sparse_vdit; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=ROOT / "tests"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_files_are_small_rooms() -> None:
    for path in sources(
        "csrc/**/*.[ch]",
        "csrc/**/*.cpp",
        "cuda/**/*.cu*",
        "sparse_vdit/**/*.py",
        "tests/**/*.py",
        "tests/**/*.[ch]",
        "benchmarks/*.py",
    ):
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines, at most {MAX_LINES}"
    assert len((ROOT / "sparse_vdit/__init__.py").read_text().splitlines()) <= MAX_INIT_LINES


def c_functions(text: str) -> list[tuple[str, int]]:
    """Names and lengths of functions; they open at column 0 and their closing brace stands alone there."""
    found, name, start = [], "", 0
    for number, line in enumerate(text.splitlines()):
        if (
            not name
            and (match := re.match(r"[A-Za-z_][\w\s\*]*?\b(\w+)\(", line))
            and not line.startswith(("#", "typedef"))
        ):
            name, start = match[1], number
        if (
            name
            and line.rstrip().endswith(";")
            and "{" not in "\n".join(text.splitlines()[start : number + 1])
        ):
            name = ""
        if name and line == "}":
            found.append((name, number - start + 1))
            name = ""
    return found


def test_c_functions_are_short() -> None:
    for path in sources("csrc/**/*.[ch]", "csrc/**/*.cpp"):
        for name, lines in c_functions(path.read_text()):
            assert lines <= MAX_C_FUNCTION_LINES or name in LONG_C_FUNCTIONS, (
                f"{path.relative_to(ROOT)}: {name} has {lines} lines"
            )


def test_core_is_silent_and_never_exits() -> None:
    banned = re.compile(
        r"(?<![\w.>])(printf|fprintf|puts|perror|exit|_exit|abort|system|popen|strcpy|strcat|sprintf|gets|alloca)\s*\("
    )
    for path in sources(*(f"csrc/{room}/*.[ch]" for room in CORE), "csrc/pyext/*.[ch]"):
        code = re.sub(r"/\*.*?\*/|//[^\n]*|\"(\\.|[^\"])*\"", "", path.read_text(), flags=re.S)
        hit = banned.search(code)
        assert not hit, f"{path.relative_to(ROOT)} calls {hit[1] if hit else ''}"


def test_python_never_unpickles_or_evaluates() -> None:
    banned = re.compile(
        r"\b(pickle|torch\.load|yaml\.load|eval|exec|os\.system|shell=True|torchvision)\b(?=\s*[(.=]|$)", re.M
    )
    for path in sources("sparse_vdit/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert not any(n.split(".")[0] in ("pickle", "torchvision", "yaml") for n in names), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in (
                    "eval",
                    "exec",
                    "os.system",
                    "torch.load",
                    "pickle.load",
                    "pickle.loads",
                ), f"{path}: {called}"
                assert not any(
                    k.arg == "shell" and getattr(k.value, "value", False) for k in node.keywords
                ), path
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path.relative_to(ROOT)}:{node.lineno}: bare except"
    assert banned


def test_no_rooms_without_a_subject() -> None:
    for path in tracked():
        assert not re.search(r"(^|[_/.])(utils?|helpers?|misc)([_./]|$)", str(path.relative_to(ROOT))), path


def test_every_pattern_has_its_name_in_every_room() -> None:
    header = (ROOT / "csrc/pattern/pattern.h").read_text()
    names = [n.lower() for n in re.findall(r"SV_PATTERN_([A-Z_]+) = \d+", header)]
    assert len(names) == 7
    masks, python = (ROOT / "tests/kit/masks.py").read_text(), (ROOT / "sparse_vdit/pattern.py").read_text()
    draws = (ROOT / "tests/kit/draws.py").read_text()
    tests = "\n".join(path.read_text() for path in sources("tests/attention/*.py"))
    for name in names:
        assert (ROOT / f"csrc/pattern/{name}.c").is_file(), f"csrc/pattern/{name}.c is missing"
        assert f'"{name}"' in masks, f"tests/kit/masks.py has no rule for {name}"
        assert re.search(rf"def {name}\(", python), f"Pattern.{name} is missing"
        assert re.search(rf"\b{name}\b", draws), f"tests/kit/draws.py draws no {name}"
        assert name in tests, f"tests/attention has no test of {name}"


def test_the_project_speaks_of_itself_alone() -> None:
    banned = re.compile(r"(/work/|/tmp/bash_jobs|/root/)")
    for path in tracked():
        if (
            path.suffix in (".py", ".c", ".h", ".cpp", ".md", ".toml", ".json", "")
            and path.name != "test_house.py"
        ):
            hit = banned.search(path.read_text(errors="replace"))
            assert not hit, f"{path.relative_to(ROOT)} names {hit[0] if hit else ''}"
