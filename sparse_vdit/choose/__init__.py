"""Choosing a plan by measured output error: `candidates.py`, `rows.py` (measuring), `table.py`, `controls.py`."""

from .candidates import DENSITIES, ladder
from .controls import permute, random_masks
from .table import ErrorTable, choose

__all__ = ["DENSITIES", "ErrorTable", "choose", "ladder", "permute", "random_masks"]
