"""Several processes or machines under torchrun: prompts are split, mass stripes shared, results gathered.

    torchrun --nproc-per-node 4 ...          every process calls `record` with the same arguments

All talk goes over a gloo group of its own, whatever the model uses. The blocks of the mass stripes are chosen
by rank 0 at the first measured call of each (bin, layer) and broadcast there, so that no process waits for a
whole generation and the sum over all prompts is, bit for bit, that of one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Ranks:
    """This process among its fellows.

    Args:
        rank, size: 0 <= rank < size.
        group: a gloo process group of torch.distributed; None where size is 1.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self._group = rank, size, group

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun started it; alone without torchrun. Joins (or adds to) torch.distributed."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        from torch import distributed

        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        group = distributed.new_group(backend="gloo")
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    def mine(self, count: int) -> range:
        """Numbers of the prompts that are this process's.

        Raises:
            ValueError: there are fewer prompts than processes.
        """
        if count < self.size:
            raise ValueError(
                f"distributed: there are {self.size} processes for {count} prompts, expected at most as many"
            )
        return range(self.rank, count, self.size)

    def share(self, array: NDArray[np.int32]) -> NDArray[np.int32]:
        """Rank 0's array, on every rank; all must call it in the same order with the same shape."""
        if self.size == 1:
            return array
        import torch
        from torch import distributed

        tensor = torch.from_numpy(np.array(array, dtype=np.int32))
        distributed.broadcast(tensor, 0, group=self._group)
        return tensor.numpy()

    def union(self, array: NDArray[np.int32]) -> NDArray[np.int32]:
        """Entries known to any rank, where -1 stands for unknown."""
        if self.size == 1:
            return array
        import torch
        from torch import distributed

        tensor = torch.from_numpy(np.array(array, dtype=np.int32))
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self._group)
        return tensor.numpy()

    def gather(self, count: int, read: Callable[[int], bytes], take: Callable[[int, bytes], object]) -> None:
        """Gives rank 0 the bytes of all prompts of other processes, one after the other.

        Args:
            count: of the prompts.
            read: the bytes of one of this process's.
            take: at rank 0, what is done with those of another's.
        """
        for number in range(count) if self.size > 1 else ():
            owner = number % self.size
            data = read(number) if owner == self.rank and owner != 0 else b""
            received = data if owner == 0 else self._passed(owner, data)
            if self.rank == 0 and owner != 0:
                take(number, received)

    def _passed(self, owner: int, data: bytes) -> bytes:
        """From `owner` to rank 0; others do nothing."""
        import torch
        from torch import distributed

        if self.rank == owner:
            distributed.send(torch.tensor([len(data)]), 0, group=self._group)
            distributed.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, group=self._group)
        elif self.rank == 0:
            length = torch.zeros(1, dtype=torch.int64)
            distributed.recv(length, owner, group=self._group)
            whole = torch.empty(int(length), dtype=torch.uint8)
            distributed.recv(whole, owner, group=self._group)
            return bytes(whole.numpy().data)
        return b""
