"""The exceptions of sparse_vdit, as the C module made them.

`ValueError`, `TypeError` and `MemoryError` are raised as Python knows them; the classes here are for the rest.
"""

from ._C import CudaError, SparseVDiTError, UnsupportedError

__all__ = ["CudaError", "SparseVDiTError", "UnsupportedError"]
