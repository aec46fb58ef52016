"""sparse-vdit doctor: what was built, what would run on this machine, and what is missing for more."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from typing import Any

#: Package -> (lowest version, what it is for).
PACKAGES = {
    "torch": ("2.10", "the torch operator and diffusers' pipelines"),
    "diffusers": ("0.36", "apply, remove, explain and the demo"),
    "transformers": (None, "diffusers' text encoders"),
    "accelerate": (None, "diffusers' loading and offloading"),
    "peft": (None, "LoRA in diffusers"),
    "matplotlib": (None, "figures of plans and reports"),
    "jinja2": (None, "the pages of demo and report"),
    "PIL": (None, "pictures in the pages"),
    "flip_evaluator": (None, "the FLIP measure"),
    "av": (None, "video files of the demo"),
    "huggingface_hub": (None, "plans from the hub"),
}

DISTRIBUTIONS = {"PIL": "pillow"}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `doctor`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor", help="what is built, what would run here, what is missing", description=__doc__
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the findings; 0 also where something is missing: nothing is broken by it."""
    findings = examine()
    if args.json:
        print(json.dumps(findings, indent=2, sort_keys=True, default=str))
    else:
        print("\n".join(_lines(findings)))
    return 0


def examine() -> dict[str, Any]:
    """Everything the doctor knows, as plain data."""
    from .. import build_info

    build_info()  # a wrong SPARSE_VDIT_ISA ends here, before anything else stumbles over it
    packages = {name: _installed(name) for name in PACKAGES}
    torch = _load("torch") if packages["torch"] else None
    if torch is not None:
        _load("sparse_vdit.ops")
    info = build_info()
    gpus = _gpus(torch)
    findings = {
        "build": info,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": packages,
        "gpus": gpus,
        "kernels": dict(info["engines"]),
        "models": _models(packages["diffusers"]),
    }
    findings["missing"] = _missing(info, packages, gpus)
    return findings


def _installed(name: str) -> str | None:
    """Version, without importing the package."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _load(name: str) -> Any:
    """The module, or None where its import fails: the doctor tells, it does not fall ill."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        print(f"sparse-vdit doctor: import {name}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _gpus(torch: Any) -> list[dict[str, Any]]:
    if torch is None or not torch.cuda.is_available():
        return []
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(
            {
                "name": properties.name,
                "arch": f"sm_{properties.major}{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return found


def _models(diffusers: str | None) -> list[str]:
    if diffusers is None or importlib.util.find_spec("torch") is None:
        return []
    from ..models.families import known_transformers

    return known_transformers()


def _missing(info: dict[str, Any], packages: dict[str, str | None], gpus: list[dict[str, Any]]) -> list[str]:
    missing = []
    for name, (lowest, purpose) in PACKAGES.items():
        version = packages[name]
        if version is None:
            missing.append(f"{name} is not installed: needed for {purpose}.")
        elif lowest is not None and _numbers(version) < _numbers(lowest):
            missing.append(f"{name} is {version}, expected at least {lowest}: needed for {purpose}.")
    if info["isa"] != info["isa_best"]:
        missing.append(f"SPARSE_VDIT_ISA={info['isa_env']} lowers the kernels; else {info['isa_best']}.")
    if info["isa_best"] in ("portable", "avx2"):
        missing.append(f"the CPU goes up to {info['isa_best']}: AVX-512 kernels are twice as wide.")
    if packages["torch"] and not info.get("torch_extension"):
        missing.append(
            "sparse_vdit._torch was not built (torch's headers were not found): the operator runs from Python."
        )
    if not info["with_cuda"]:
        reason = info.get("without_cuda_because") or "built without them"
        where = f" {gpus[0]['name']} stays unused." if gpus else ""
        missing.append(f"GPU: {reason}.{where}")
    elif not gpus:
        missing.append("no CUDA GPU is visible: the CPU kernels run.")
    return missing


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def _lines(findings: dict[str, Any]) -> list[str]:
    info = findings["build"]
    lowered = f", SPARSE_VDIT_ISA={info['isa_env']}" if info["isa_env"] else ""
    packages = ", ".join(
        f"{name} {version or 'not installed'}" for name, version in findings["packages"].items()
    )
    door = info["torch_door"] or "not loaded"
    lines = [
        f"sparse_vdit   {info['version']}, {info['compiler']}",
        f"python        {findings['python']} on {findings['platform']}",
        f"cpu           {findings['cpus']} usable, {info['isa']} (best here {info['isa_best']}{lowered})",
        f"threads       {info['threads']}, {info['pool']} pool",
        f"packages      {packages}",
        f"torch door    {door}",
        f"gpu           {', '.join(gpu['name'] for gpu in findings['gpus']) or 'none visible'}",
        f"models        {', '.join(findings['models']) or 'none: diffusers is not installed'}",
        "kernels that would run here:",
        *(f"  {case:<14}{engine}" for case, engine in findings["kernels"].items()),
    ]
    missing = [f"  - {sentence}" for sentence in findings["missing"]]
    return [*lines, "missing for more:" if missing else "nothing is missing", *missing]
