"""The offline search: `candidates.py` what there is, `recorder.py` what it costs in accuracy, `cost.py` in time,
`select.py` the choice."""

from .candidates import Candidates, ladder

__all__ = ["Candidates", "ladder"]
