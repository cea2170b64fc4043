"""The memory of tensors, which no header describes: what does not look like them has none."""

from __future__ import annotations

import numpy as np
import pytest
from made_objects import BASE, Heap

from diagtool.runtimes.cpython.heap.tensors import storages

HEAD = 16  # bytes of an object's head


class Torch:
    """Tensors in memory as torch 2.13 lays them out."""

    def __init__(self) -> None:
        self.heap = Heap()

    def storage(self, size: int, device: int = 0, borrowed: bool = False) -> int:
        storage, data = self.heap.room(64), self.heap.room(16)
        self.heap.put(storage + 16, "QQQ", data, BASE, 0x1234 if borrowed else data)
        self.heap.put(storage + 40, "bb", device, -1)
        self.heap.put(storage + 48, "q", size)
        return storage

    def tensor(self, storage: int, older: bool = False) -> int:
        implementation = self.heap.room(64)
        self.heap.put(implementation + 16, "Q", storage)
        tensor = self.heap.room(64)
        if older:  # a MaybeOwned: whether it is borrowed, then the pointer
            self.heap.put(tensor + HEAD, "QQ", 0, implementation)
        else:
            self.heap.put(tensor + HEAD, "Q", implementation)
        return tensor

    def sizes(self, *tensors: int) -> list[int]:
        ctx = self.heap.context()
        return storages(ctx, np.array(tensors, np.uint64))[1].tolist()


@pytest.mark.parametrize("older", [False, True])
def test_a_tensor_has_the_bytes_of_its_storage(older: bool) -> None:
    torch = Torch()
    assert torch.sizes(torch.tensor(torch.storage(4096), older)) == [4096]


def test_memory_of_others_does_not_count() -> None:
    torch = Torch()
    on_gpu, of_numpy = torch.storage(4096, device=1), torch.storage(4096, borrowed=True)
    assert torch.sizes(torch.tensor(on_gpu), torch.tensor(of_numpy)) == [0, 0]


def test_what_is_no_tensor_has_no_bytes() -> None:
    torch = Torch()
    nowhere = torch.heap.room(64)
    torch.heap.put(nowhere + HEAD, "QQ", 0x7777777777777770, 5)
    negative = torch.tensor(torch.storage(-5))
    assert torch.sizes(nowhere, negative, torch.heap.room(64), 0) == [0, 0, 0, 0]
