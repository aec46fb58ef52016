"""Choosing a plan by measured output error: `candidates.py`, `rows.py` measures, `table.py` selects."""

from .candidates import DENSITIES, ladder
from .controls import permute, random_masks
from .sensitivity import gradient_power
from .table import ErrorTable, choose

__all__ = ["DENSITIES", "ErrorTable", "choose", "gradient_power", "ladder", "permute", "random_masks"]
