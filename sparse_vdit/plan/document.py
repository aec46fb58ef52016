"""A plan as the JSON document of `plan.json`, and back; every field checked before anything is made of it.

format_version, package_version, geometry, orders, patterns (by number of order), transformers (by name:
model, bins, dense_above, choice [bin][layer][head], betas alike, three decimals or null), provenance,
sha256
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_vdit.geometry import Json, closed, json_type, shown
from sparse_vdit.pattern import Geometry, Order, Pattern
from sparse_vdit.plan.file import (
    FILE_NAME,
    FORMAT_VERSION,
    PlanError,
    check_digest,
    check_version,
    checked_provenance,
    digest,
    layout,
)
from sparse_vdit.plan.identity import ModelIdentity
from sparse_vdit.plan.transformer import (
    MAX_BINS,
    MAX_CELLS,
    MAX_PATTERN_INTS,
    MAX_PATTERNS,
    TransformerPlan,
    checked_name,
)

if TYPE_CHECKING:
    from sparse_vdit.plan.sparse import SparsePlan

file_name = FILE_NAME

FIELDS = (
    "format_version",
    "package_version",
    "geometry",
    "orders",
    "patterns",
    "transformers",
    "provenance",
    "sha256",
)
TRANSFORMER_FIELDS = ("model", "bins", "dense_above", "choice", "betas")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def document(plan: SparsePlan) -> Json:
    """The document of a plan, with its hash."""
    patterns = next(iter(plan.transformers.values())).patterns
    transformers = {name: part.to_json() for name, part in plan.transformers.items()}
    orders = list(dict.fromkeys(pattern.order for pattern in patterns))
    found: Json = {
        "format_version": FORMAT_VERSION,
        "package_version": plan.package_version,
        "geometry": plan.geometry.to_json(),
        "orders": [order.to_json() for order in orders],
        "patterns": [_pattern_to_json(pattern, orders) for pattern in patterns],
        "transformers": transformers,
        "provenance": plan.provenance,
    }
    return found | {"sha256": digest(found)}


def text(plan: SparsePlan) -> bytes:
    """The bytes of `plan.json`."""
    return layout(document(plan))


def _pattern_to_json(pattern: Pattern, orders: list[Order]) -> Json:
    fields = pattern.to_json()
    for part in fields.get("parts", ()):
        part.pop("order", None)
    return fields | {"order": orders.index(pattern.order)}


def plan_of(value: Any) -> SparsePlan:
    """The plan of a document.

    Raises:
        PlanError: one sentence that names the field.
    """
    from sparse_vdit.plan.sparse import SparsePlan

    try:
        check_version(value if isinstance(value, dict) else {})
        fields = closed("plan", value, FIELDS)
        if not isinstance(fields["package_version"], str) or len(fields["package_version"]) > 64:
            raise PlanError("plan: package_version is no short string, expected one")
        check_digest(fields)
        geometry = Geometry.from_json(fields["geometry"], "plan.geometry")
        patterns = _patterns(fields["patterns"], _orders(fields["orders"]))
        plans = fields["transformers"]
        if not isinstance(plans, dict):
            raise PlanError(f"plan: transformers is {json_type(plans)}, expected an object")
        if not 1 <= len(plans) <= 4:
            raise PlanError(f"plan: there are {len(plans)} transformers, expected 1..4")
        made = {name: _transformer(name, part, geometry, patterns) for name, part in plans.items()}
        plan = SparsePlan(made, checked_provenance(fields["provenance"]))
        plan.package_version = fields["package_version"]
        return plan
    except PlanError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        sentence = str(error)
        raise PlanError(sentence if sentence.startswith("plan") else f"plan: {sentence}") from None


def _list(who: str, value: Any, high: int, low: int = 0) -> list[Any]:
    if isinstance(value, list):
        if low <= len(value) <= high:
            return value
        raise PlanError(f"{who}: there are {len(value)} entries, expected {low}..{high}")
    raise PlanError(f"{who}: it is {json_type(value)}, expected a list")


def _orders(value: Any) -> list[Order]:
    listed = _list("plan.orders", value, MAX_PATTERNS, 1)
    return [Order.from_json(order, f"plan.orders[{number}]") for number, order in enumerate(listed)]


def _patterns(value: Any, orders: list[Order]) -> tuple[Pattern, ...]:
    listed = _list("plan.patterns", value, MAX_PATTERNS, 1)
    total = sum(_payload(entry) for entry in listed)
    if total > MAX_PATTERN_INTS:
        raise PlanError(f"plan.patterns: they have {total} entries, expected at most {MAX_PATTERN_INTS}")
    return tuple(_pattern(f"plan.patterns[{number}]", entry, orders) for number, entry in enumerate(listed))


def _payload(entry: Any) -> int:
    fields = entry if isinstance(entry, dict) else {}
    own = sum(len(fields[name]) for name in ("key_blocks", "parts") if isinstance(fields.get(name), list))
    parts = fields.get("parts")
    return own + (sum(_payload(part) for part in parts[:65]) if isinstance(parts, list) else 0)


def _pattern(who: str, entry: Any, orders: list[Order]) -> Pattern:
    fields = dict(entry) if isinstance(entry, dict) else entry
    if isinstance(fields, dict):
        number = fields.get("order")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(orders):
            raise PlanError(f"{who}: order is {shown(number)}, expected 0..{len(orders) - 1}")
        order = orders[number].to_json()
        fields["order"] = order
        if isinstance(fields.get("parts"), list):
            fields["parts"] = [_part(who, part, order) for part in fields["parts"]]
    pattern = Pattern.from_json(fields, who)
    if pattern.remainder is not None:
        raise PlanError(f"{who}: it has a remainder, expected it in betas")
    return pattern


def _part(who: str, part: Any, order: Json) -> Any:
    if not isinstance(part, dict):
        return part
    if "order" in part:
        raise PlanError(f"{who}: a part has an order, expected it on the union alone")
    return part | {"order": order}


def _transformer(name: str, value: Any, geometry: Geometry, patterns: tuple[Pattern, ...]) -> TransformerPlan:
    who = f"plan.transformers.{checked_name(name)}"
    fields = closed(who, value, TRANSFORMER_FIELDS)
    model = ModelIdentity.from_json(fields["model"], f"{who}.model")
    bins = _list(f"{who}.bins", fields["bins"], MAX_BINS + 1, 2)
    shape = (len(bins) - 1, model.layers, model.heads)
    if np.prod(shape) > MAX_CELLS:
        raise PlanError(
            f"{who}: it has {np.prod(shape)} cells (bins x layers x heads), expected at most {MAX_CELLS}"
        )
    choice = _cube(f"{who}.choice", fields["choice"], shape, (int,))
    betas = _cube(f"{who}.betas", fields["betas"], shape, (int, float, type(None)))
    for beta in (b for layers in betas for heads in layers for b in heads):
        if beta is not None and abs(beta) > 3e38:
            raise PlanError(f"{who}.betas: it holds {beta}, expected finite numbers or null")
        if beta is not None and round(beta, 3) != beta:
            raise PlanError(f"{who}.betas: it holds {beta}, expected three decimals")
    return TransformerPlan(
        model, geometry, patterns, _integers(who, choice, len(patterns)), betas, bins, fields["dense_above"]
    )


def _cube(
    who: str, value: Any, shape: tuple[int, int, int], types: tuple[type, ...]
) -> list[list[list[Any]]]:
    """A list [bins][layers][heads] of exactly this shape, its leaves of these types (never truth values)."""
    names = ("bins", "layers", "heads")

    def walk(node: Any, axis: int) -> None:
        if axis == 3:
            if type(node) not in types:
                raise PlanError(f"{who}: it holds {json_type(node)}, expected {_words(types)}")
            return
        if not isinstance(node, list):
            raise PlanError(f"{who}: it holds {json_type(node)}, expected a list of {names[axis]}")
        if len(node) != shape[axis]:
            raise PlanError(f"{who}: it has {len(node)} {names[axis]}, expected {shape[axis]}")
        for child in node:
            walk(child, axis + 1)

    walk(value, 0)
    return list(value)


def _words(types: tuple[type, ...]) -> str:
    return "integers" if types == (int,) else "numbers or null"


def _integers(who: str, choice: list[list[list[int]]], patterns: int) -> Any:
    for number in (n for layers in choice for heads in layers for n in heads):
        if not 0 <= number < patterns:
            raise PlanError(f"{who}.choice: it holds {number}, expected 0..{patterns - 1}")
    return np.array(choice, dtype=np.int32)


def fetch(path: str | os.PathLike[str], *, subfolder: str | None, **hub: Any) -> str | Path:
    """The local file of a folder, a file or a hub repository."""
    local = Path(path)
    if local.is_dir():
        return local / (subfolder or "") / FILE_NAME
    if local.exists():
        return local
    name = os.fspath(path)
    if not isinstance(name, str) or not REPOSITORY.fullmatch(name) or name.endswith(".json"):
        raise FileNotFoundError(
            f"plan: there is no {str(name)!r}, expected a folder, a file or a hub repository"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise FileNotFoundError(
            f"plan: there is no folder {name!r}, and no huggingface_hub to look for a repository"
        ) from None
    try:
        found: str = hf_hub_download(name, FILE_NAME, subfolder=subfolder, **hub)
    except (OSError, ValueError) as error:  # no such repository or file, no network, an illegal name
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"plan: there is no folder {name!r}, and the hub has no {FILE_NAME} for it: {reason}"
        ) from error
    return found


def push(file: Path, repo_id: str, **kwargs: Any) -> None:
    """Uploads a written plan to a hub repository, which is made if need be."""
    from huggingface_hub import HfApi

    api = HfApi(token=kwargs.pop("token", None))
    repository = api.create_repo(repo_id, private=kwargs.pop("private", None), exist_ok=True)
    api.upload_file(path_or_fileobj=file, path_in_repo=FILE_NAME, repo_id=repository.repo_id, **kwargs)
