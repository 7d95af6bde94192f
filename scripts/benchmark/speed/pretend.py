"""A device that stands in for a GPU: it computes on the CPU, refuses what a GPU refuses, and notes
every operation for which the CPU would have to wait.

Its tensors are wrappers of CPU tensors that give their device as "meta" (which has no kernels, but
is known to autograd). So code whose control flow depends on numbers runs to its end, which it does
not with `torch._subclasses.FakeTensorMode`. What it cannot show: faults and rounding of GPU
kernels, code that asks for the device type "cuda", and time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from benchmark.speed.waits import Trace, caller

DEVICE = torch.device("meta")
aten = torch.ops.aten
# The size of the result, or whether all went well, is known on the GPU only.
WAITING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.bincount,
    aten.equal,
    aten._linalg_eigh,
    aten._linalg_svd,
    aten._linalg_check_errors,
}

INDEXING = aten.index, aten.index_put, aten.index_put_


class _Pretend(Tensor):
    """A CPU tensor that says it is elsewhere."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> _Pretend:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            inner.stride(),
            inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"pretend {self.inner!r}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: a tensor of the pretended device outside of `pretend`")


class _Dispatch(TorchDispatchMode):
    """Computes on the wrapped tensors."""

    def __init__(self, trace: Trace, note: Callable[[str], None]) -> None:
        super().__init__()
        self.trace, self.note = trace, note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        packet = func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, _Pretend)]
        asked = kwargs.get("device")
        target = None if asked is None else torch.device(asked)
        if not here and target != DEVICE:
            return func(*args, **kwargs)
        self.trace.operators += 1
        plain = [tensor for tensor in tensors if not isinstance(tensor, _Pretend)]
        if packet in (aten._to_copy, aten.copy_):
            self._copy(packet, args, kwargs, target)
        elif packet in INDEXING and isinstance(args[0], _Pretend):
            if plain:  # a GPU takes indices of the CPU
                self.note("to the device")
        elif any(tensor.ndim for tensor in plain):
            raise RuntimeError(f"{func}: a tensor on the CPU among those of the GPU, {caller()}")
        if packet in WAITING or _waits(packet, args, kwargs):
            self.note(packet.__name__)
        if target == DEVICE:
            kwargs["device"] = torch.device("cpu")
        bare, named = tree_map(_bare, (args, kwargs))
        result = func(*bare, **named)
        stays = target == DEVICE or (target is None and here)
        if packet is aten.copy_:
            stays = isinstance(args[0], _Pretend)
        if stays:
            result = tree_map(lambda v: _Pretend(v) if isinstance(v, Tensor) else v, result)
        if func._schema.is_mutable or any(r.alias_info for r in func._schema.returns):
            return return_and_correct_aliasing(func, args, kwargs, result)
        return result

    def _copy(self, packet: Any, args: tuple, kwargs: dict, target: torch.device | None) -> None:
        """Notes copies between the devices."""
        source = args[1] if packet is aten.copy_ else args[0]
        begins = isinstance(source, _Pretend)
        ends = isinstance(args[0], _Pretend) if packet is aten.copy_ else target in (None, DEVICE)
        later = kwargs.get("non_blocking") or (packet is aten.copy_ and args[2:] and args[2])
        if begins and not ends and later:
            raise RuntimeError(f"read before the copy to the CPU is done, {caller()}")
        if begins and not ends:
            self.note("to the CPU")
        elif ends and not begins and source.ndim + (packet is not aten.copy_) and not later:
            self.note("to the device")


def _bare(value: Any) -> Any:
    return value.inner if isinstance(value, _Pretend) else value


def _waits(packet: Any, args: tuple, kwargs: dict) -> bool:
    """Whether an operator waits for some arguments."""
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    if packet in INDEXING:
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        # A number for all places of one mask is a masked fill.
        return bool(masks) and not (packet is not aten.index and args[2].numel() == 1)
    return False


class _Functions(TorchFunctionMode):
    """What does not reach the operators: numbers and lists of Python, NumPy."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        if isinstance(first, _Pretend):
            name = getattr(func, "__name__", "")
            if func is Tensor.new_tensor:
                dtype = kwargs.get("dtype") or first.dtype
                return torch.tensor(args[1], dtype=dtype).to(DEVICE)
            if func is Tensor.tolist:
                self.note("tolist")
                return first.inner.tolist()
            if func in (Tensor.numpy, Tensor.__array__):
                raise TypeError(f"{name}: a tensor of the GPU has no array, {caller()}")
            if func in (Tensor.__getitem__, Tensor.__setitem__):
                args = first, self._index(args[1]), *args[2:]
        return func(*args, **kwargs)

    def _index(self, index: Any) -> Any:
        """Lists become tensors, which are copied to the device."""
        if isinstance(index, list):
            return torch.tensor(index).to(DEVICE)
        if isinstance(index, tuple):
            return tuple(self._index(part) for part in index)
        return index


@contextlib.contextmanager
def pretend() -> Iterator[Trace]:
    """Within, tensors moved to `DEVICE` behave as on a GPU.

    Raises:
        RuntimeError, TypeError: what a GPU refuses, with the line of ptri that asks for it.
    """
    trace = Trace()

    def note(kind: str) -> None:
        trace.waits[caller(), kind] += 1

    real = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        known = device_type != DEVICE.type
        return real(device_type, *args, **kwargs) if known else contextlib.nullcontext()

    torch.autocast = autocast
    try:
        with _Functions(note), _Dispatch(trace, note):
            yield trace
    finally:
        torch.autocast = real
