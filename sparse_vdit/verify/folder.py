"""The folder of a search: which files there are, read as untrusted, by fixed names alone.

errors.safetensors  candidates.json  hardware.json  stock.json  plan.json     what it takes to plan again
verification.json  clips.safetensors  heads.safetensors  transfer.safetensors videos/   what was verified
report.html
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sparse_vdit.plan import SparsePlan
from sparse_vdit.search import HeadErrors, errors_file
from sparse_vdit.search.cost import CostModel
from sparse_vdit.search.hardware import FILE_NAME as HARDWARE
from sparse_vdit.search.hardware import Machine

from .judge import FILE_NAME as VERIFICATION
from .judge import Verification
from .request import costs
from .stock import FILE_NAME as STOCK
from .stock import Stock

ERRORS = errors_file.FILE_NAME
TRANSFER = "transfer.safetensors"
PLAN = "plan.json"
REPORT = "report.html"


def errors_path(path: str | os.PathLike[str]) -> Path:
    """The errors file: as given, or in the given folder."""
    found = Path(path)
    return found / ERRORS if found.is_dir() else found


@dataclass
class Folder:
    """A search that was done.

    Args:
        path: the folder, or its errors file.
        hardware: another hardware.json than the folder's own.
        batch, dtype: of the calls, where there is no stock.json.
    """

    path: Path
    hardware: Path | None = None
    batch: int | None = None
    dtype: str | None = None

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return errors_path(self.path).parent

    @cached_property
    def errors(self) -> dict[str, HeadErrors]:
        """The recording, by transformer."""
        return errors_file.load(errors_path(self.path))

    @cached_property
    def stock(self) -> Stock | None:
        """The dense step on the machine of the prices; None where it was not measured."""
        layers = {name: part.model.layers for name, part in self.errors.items()}
        return None if self.measured is None else self.measured.on(self.cost, layers)

    @cached_property
    def measured(self) -> Stock | None:
        """The dense step as it was timed."""
        return Stock.load(self.folder) if (self.folder / STOCK).exists() else None

    @cached_property
    def machine(self) -> Machine:
        """The machine's constants.

        Raises:
            FileNotFoundError: there is no hardware.json.
        """
        return Machine.load(self.hardware if self.hardware is not None else self.folder / HARDWARE)

    @cached_property
    def cost(self) -> dict[str, CostModel]:
        """Prices, by transformer."""
        batch = self.batch or (self.measured.batch if self.measured is not None else 1)
        dtype = self.dtype or (self.measured.dtype if self.measured is not None else "float32")
        return costs(self.errors, self.machine, batch=batch, dtype=dtype)

    @cached_property
    def plan(self) -> SparsePlan:
        """The plan in the folder."""
        return SparsePlan.from_pretrained(self.folder / PLAN)

    @cached_property
    def verification(self) -> Verification | None:
        """What this plan achieved; None where it was not verified."""
        if not (self.folder / VERIFICATION).exists():
            return None
        found = Verification.load(self.folder)
        return found if found.plan_hash == self.plan.hash else None

    @cached_property
    def others(self) -> dict[str, HeadErrors] | None:
        """The recording of other prompts; None where there is none."""
        path = self.folder / TRANSFER
        return errors_file.load(path) if path.exists() else None
