"""Sparse plans on diffusers' video transformers. Reading order: wan.py, attend.py, session.py, install.py."""

from .explain import Explanation, explain
from .install import Observation, applied, apply, observe, remove

__all__ = ["Explanation", "Observation", "applied", "apply", "explain", "observe", "remove"]
