"""Fuzzing of the plan reader: whatever the bytes, the answer is a plan or one PlanError, and soon.

    fuzz_plan.py [--seconds N] [--seed N] [--corpus DIR] [--engine own|atheris]

Starts from legal documents and every file of the corpus; mutates bytes, JSON values, and values under a
hash that is made to fit again, so that the checks behind the hash are reached. Where atheris is installed
it leads the same mutations by coverage. A crash is kept in the corpus and printed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from sparse_vdit import Geometry, Order, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity, PlanError
from sparse_vdit.plan.file import canonical, digest, parse
from sparse_vdit.plan.transformer import TransformerPlan

CORPUS = Path(__file__).parent / "corpus_plan"
MEMORY = 2 * 2**30
SLOW_SECONDS = 5.0
LEGAL = (
    3  # documents of `seeds`; most mutations start there, since a broken one breaks at the same place again
)
WORDS = (
    None, True, False, 0, 1, -1, 2, 16, 255, 256, 2**31 - 1, 2**31, 2**63, -(2**63), 10**19, 0.5, -0.0, 1e308,
    1e-320, "", "a", "full", "skip", "tiles", "union", "diagonal", "../../etc/passwd", "\ud800", "\x00", "\n",
    "x" * 300, [], {}, [[]], [0] * 300, {"kind": "full"}, {"kind": "union", "parts": []},
    {"a": {"b": {"c": {}}}},
)  # fmt: skip
CHUNKS = (b"NaN", b"Infinity", b"-", b"1e999", b"\xff", b"\xef\xbb\xbf", b"\\", b'"', b"[" * 40, b"]" * 9,
          b"{", b"}", b",", b":", b"null", b"9" * 30, b"\x00", b'"a":1,"a":2', b"\\ud800",
          b" " * 99)  # fmt: skip


def seeds() -> list[bytes]:
    """Legal documents that use every kind, order and field."""
    geometry = Geometry(3, 4, 5, prefix=2, suffix=1, block_q=16, block_k=16)
    boxes = {"tile": (2, 2, 2), "time": (1, 0, None)}
    patterns = [
        Pattern.full(),
        Pattern.skip(),
        Pattern.diagonal(half_width=7, sink_frames=1),
        Pattern.multi_diagonal(half_width=3),
        Pattern.vertical_stripe(key_blocks=[0, 2], order=Order.token_major()),
        Pattern.periodic_tiles(**boxes, space=(2, 1, 3)),
        Pattern.periodic_tiles(**boxes, rows=(1, 0, None), columns=(2, 1, 2)),
        Pattern.union(Pattern.diagonal(half_width=2), Pattern.vertical_stripe(key_blocks=[1])),
    ]
    model = ModelIdentity("WanTransformer3DModel", 2, 2, 64, (1, 2, 2))
    choice = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    betas = [[[None, None], [0.5, -1.25]], [[0.0, None], [3.0, 0.001]]]
    part = TransformerPlan(model, geometry, patterns, choice, betas, (0, 0.5, 1), 0.9)
    small = SparsePlan.uniform(model, geometry, Pattern.full())
    plans = [
        SparsePlan(part, {"note": ["x", 1, None]}),
        small,
        SparsePlan({"transformer": part, "transformer_2": part}),
    ]
    return [canonical(plan.to_json()) for plan in plans]


def read(data: bytes) -> str:
    """What the reader says: 'a plan', or the beginning of its sentence; anything but PlanError goes up."""
    try:
        plan = SparsePlan.from_json(parse(data))
    except PlanError as error:
        sentence = str(error)
        assert sentence.startswith("plan"), sentence
        assert "\n" not in sentence, sentence
        assert len(sentence) < 600, len(sentence)
        return re.sub(r"\d+", "#", sentence)[:60]
    again = SparsePlan.from_json(parse(canonical(plan.to_json())))
    assert again == plan, "a plan that is read must be written and read again as the same plan"
    plan.density()
    return "a plan"


def mutate(rng: random.Random, pool: list[bytes]) -> bytes:
    """A new input from one of the pool."""
    data = rng.choice(pool[:LEGAL] if rng.random() < 0.7 else pool)
    if rng.random() < 0.2:
        return mutate_bytes(rng, data, rng.choice(pool))
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data, rng.choice(pool))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        value = mutate_value(rng, value)
    if isinstance(value, dict) and rng.random() < 0.9:
        with contextlib.suppress(ValueError, TypeError):
            value["sha256"] = digest(value)
    return json.dumps(value).encode("utf-8", "replace")


def mutate_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flips, cuts, insertions and splices."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + rng.randrange(20)] = b""
        elif kind == 2:
            out[at:at] = rng.choice(CHUNKS)
        elif kind == 3:
            start = rng.randrange(len(other) + 1)
            out[at:at] = other[start : start + rng.randrange(60)]
        else:
            del out[at:]
    return bytes(out[: 2**20])


def mutate_value(rng: random.Random, value: Any) -> Any:
    """One change somewhere in a JSON value."""
    nodes = [((), value)]
    for path, node in nodes:
        if len(nodes) > 500:
            break
        entries = (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        )
        nodes += [((*path, name), child) for name, child in entries]
    path, node = rng.choice(nodes)
    if not path:
        return copy.deepcopy(rng.choice(WORDS)) if rng.random() < 0.05 else value
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    kind, last = rng.randrange(6), path[-1]
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(node, int) and not isinstance(node, bool):
        parent[last] = node + rng.choice((-1, 1, 1000))
    elif kind == 2 and isinstance(parent, list):
        parent[last:last] = [copy.deepcopy(node)] * rng.choice((1, 2, 70))
    elif kind == 3 and isinstance(parent, dict):
        name = rng.choice((f"{last}x", f"{last}\n", "kind", "order", "parts", "remainder", "sink_frames"))
        parent[name] = copy.deepcopy(node)
    elif kind == 4:
        parent[last] = copy.deepcopy(rng.choice(nodes)[1])
    else:
        parent[last] = copy.deepcopy(rng.choice(WORDS))
    return value


def run(seconds: float, seed: int, corpus: Path) -> int:
    """Fuzzes for a time; returns the number of crashes."""
    rng = random.Random(seed)
    pool = seeds() + [path.read_bytes() for path in sorted(corpus.glob("*.json"))]
    said: Counter[str] = Counter(read(data) for data in pool)
    end, runs = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = mutate(rng, pool)
        begin = time.monotonic()
        try:
            answer = read(data)
        except Exception as error:
            return report(data, corpus, f"{type(error).__name__}: {error}")
        took = time.monotonic() - begin
        if took > SLOW_SECONDS:
            return report(data, corpus, f"{took:.1f} s for {len(data)} bytes")
        runs += 1
        if answer not in said and len(pool) < 1000 and is_json(data):
            pool.append(data)
        said[answer] += 1
    found = f"{said['a plan']} plans, {len(said) - 1} kinds of refusal"
    print(f"fuzz_plan: {runs} inputs in {seconds:g} s, seed {seed}: {found}")
    for answer, count in said.most_common(12):
        print(f"  {count:7d}  {answer}")
    if said["a plan"] < 3 or len(said) < 30:
        print("fuzz_plan: it reached too little of the reader to mean anything", file=sys.stderr)
        return 1
    return 0


def is_json(data: bytes) -> bool:
    """Whether Python reads it at all: broken text teaches the pool nothing."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def report(data: bytes, corpus: Path, sentence: str) -> int:
    """Keeps and shows an input that broke the promise."""
    corpus.mkdir(exist_ok=True)
    path = corpus / f"crash_{len(list(corpus.glob('crash_*')))}.json"
    path.write_bytes(data)
    print(f"fuzz_plan: {sentence}\n  input kept as {path}\n  {data[:500]!r}", file=sys.stderr)
    return 1


def run_atheris(seconds: float, seed: int, corpus: Path) -> None:
    """The same function and mutations, led by coverage; atheris ends the process itself."""
    import atheris

    for name in ("geometry", "pattern", "plan.document", "plan.file", "plan.identity", "plan.transformer"):
        for function in functions(import_module(f"sparse_vdit.{name}")):
            atheris.instrument_func(function)

    def one(data: bytes) -> None:
        read(data)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        return mutate(random.Random(seed), [data, data, data, *legal])[:max_size]

    legal = seeds()
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(legal):
            Path(folder, str(number)).write_bytes(data)
        limits = [
            f"-max_total_time={int(seconds)}",
            f"-seed={seed + 1}",
            "-rss_limit_mb=2048",
            "-max_len=65536",
        ]
        atheris.Setup(
            [sys.argv[0], *limits, f"-artifact_prefix={corpus}_", folder], one, custom_mutator=mutated
        )
        atheris.Fuzz()


def functions(module: ModuleType) -> list[FunctionType]:
    """Functions and methods that a module defines."""
    owners = [module, *(value for value in vars(module).values() if isinstance(value, type))]
    found = [getattr(value, "__func__", value) for owner in owners for value in vars(owner).values()]
    return [f for f in found if isinstance(f, FunctionType) and f.__module__ == module.__name__]


def main() -> int:
    """Reads the arguments and fuzzes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--engine", choices=("own", "atheris"), default=None)
    arguments = parser.parse_args()
    engine = arguments.engine or ("atheris" if find_spec("atheris") else "own")
    if engine == "atheris":
        run_atheris(arguments.seconds, arguments.seed, arguments.corpus)
        return 0
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return run(arguments.seconds, arguments.seed, arguments.corpus)


if __name__ == "__main__":
    sys.exit(main())
