"""The memory of torch's tensors, as far as the process itself has it.

No header fixes these structures for other programs: c10/core/TensorImpl.h, StorageImpl.h and
torch/csrc/autograd/python_variable.h, checked with torch 2.13. Versions before had a ``MaybeOwned`` in the
tensor object, a flag and then the pointer, where now the pointer is. What does not look like them has no
bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context

#: The C bases of tensors, by ``tp_name``.
TENSORS = ("torch._C.TensorBase", "torch._C._TensorBase")

_STORAGE = 16  # TensorImpl: vtable, reference counts, storage_
_DATA, _CONTEXT, _DEVICE, _BYTES = (
    16,
    32,
    40,
    48,
)  # StorageImpl: data_ptr_ (data, deleter, context), size_bytes_
_CPU = 0  # c10::DeviceType
_MAPPED = np.uint64(1 << 12)
_0 = np.uint64(0)


def storages(ctx: Context, tensors: U64) -> tuple[U64, NDArray[np.int64]]:
    """(storage of each tensor, bytes that it has of the process's own memory).

    Memory on another device has none, nor has what torch only borrows (``from_numpy``): an allocation of its
    own is its own context.
    """
    v = ctx.vectors
    head = ctx.runtime.layout["sizeof.PyObject"]
    direct, behind = v.words(tensors, head), v.words(tensors, head + 8)
    implementation = np.where(direct >= _MAPPED, direct, np.where(direct <= 1, behind, _0))
    storage = v.words(implementation, _STORAGE)
    data, context = v.words(storage, _DATA), v.words(storage, _CONTEXT)
    device = v.memory.load(np.where(storage != 0, storage + np.uint64(_DEVICE), _0), "i1")[0]
    size = v.words(storage, _BYTES).astype(np.int64)
    own = (data != 0) & (data == context) & (device == _CPU) & (size > 0)
    return storage, np.where(own, size, 0)
