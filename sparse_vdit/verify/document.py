"""Reading the JSON files of a search's folder: by fixed name, bounded, each refusal one sentence."""

from __future__ import annotations

import os
from pathlib import Path

from sparse_vdit.geometry import Json
from sparse_vdit.plan.file import PlanError, parse, read_bytes


def read_document(who: str, folder: str | os.PathLike[str], name: str, expected: str = "one") -> Json:
    """Returns the document `folder/name`.

    Args:
        who: opens the sentence of a refusal.
        folder, name: where it is.
        expected: what a missing file should have been.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is too large, or no JSON object.
    """
    try:
        return parse(read_bytes(Path(folder) / name))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{who}: there is no {name} in {os.fspath(folder)!r}, expected {expected}"
        ) from None
    except PlanError as error:
        raise ValueError(f"{who}: {str(error).removeprefix('plan: ')}") from None
