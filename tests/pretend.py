"""A pretended GPU: tensors that say they are on ``cuda`` and are computed on the CPU.

What mixes them with tensors of the CPU fails as it would on a GPU. That is what a machine without
one can still find out: whether every tensor is made on, or moved to, the device of what it meets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)
# These take tensors of both devices on purpose: copies, and indexes that may lie on the CPU
COPIES = {"aten::_to_copy", "aten::copy_", "aten::to"}
INDEXED = {"aten::index": [0], "aten::index_put_": [0, 2], "aten::index_put": [0, 2]}


def is_list(index: Any) -> bool:
    return isinstance(index, list)


def as_index(index: Any) -> Any:
    """A list of numbers as a tensor: to C++ the device is "meta", where it would be left empty."""
    return torch.tensor(index) if is_list(index) else index


class MixedDevices(RuntimeError):
    """An operation met tensors of both devices."""


class OnGpu(torch.Tensor):
    """Says that it is on the GPU; its numbers are those of ``inner``, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device="meta",
            requires_grad=real.requires_grad,
        )
        made.inner = real.detach()
        return made

    @property
    def device(self) -> torch.device:
        return GPU

    @property
    def is_cuda(self) -> bool:
        return True

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(tree_map(as_index, index, is_leaf=is_list))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(tree_map(as_index, index, is_leaf=is_list), value)

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operation: checked, then done on the CPU."""
    name = func._schema.name
    values, _ = tree_flatten((args, kwargs))
    on_gpu = any(isinstance(value, OnGpu) for value in values)
    if name not in COPIES:
        checked = values
        if name in INDEXED:
            checked = [args[place] for place in INDEXED[name]]
        # A CPU tensor without dimensions is taken for a number
        lost = [
            tuple(value.shape)
            for value in checked
            if isinstance(value, torch.Tensor) and not isinstance(value, OnGpu) and value.dim()
        ]
        if on_gpu and lost:
            raise MixedDevices(f"{func}: {lost} on the CPU, others on the GPU")
    else:
        on_gpu = isinstance(args[0], OnGpu)
    for value in values:
        if isinstance(value, torch.device):
            # To C++ the pretended device is "meta"
            on_gpu = value.type in ("cuda", "meta")
    bare_args, bare_kwargs = tree_map(on_cpu, (args, kwargs))
    if not on_gpu:
        return func(*bare_args, **bare_kwargs)
    # Pretended tensors are never inference tensors, whose views cannot be wrapped
    with torch.inference_mode(False), torch.no_grad():
        result = func(*bare_args, **bare_kwargs)
        # In place: the caller's own tensor is the answer
        if func._schema.is_mutable and name.endswith("_"):
            return args[0] if result is not None else None
        return tree_map(on_pretended_gpu, result)


def on_pretended_gpu(value: Any) -> Any:
    """A tensor of the CPU as one of the GPU."""
    return OnGpu(value) if isinstance(value, torch.Tensor) else value


def on_cpu(value: Any) -> Any:
    """The tensor behind a pretended one, and the CPU for any device."""
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.inner if isinstance(value, OnGpu) else value


class PretendedGpu(TorchDispatchMode):
    """Inside, ``device="cuda"`` works."""

    def __init__(self) -> None:
        super().__init__()
        # Under a mode of this kind torch does not look for a real GPU
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


@contextlib.contextmanager
def pretended_gpu() -> Iterator[None]:
    """Inside, tensors can be made on and moved to a GPU that is not there."""
    # ``torch.tensor(..., device="cuda")`` would look for a real one
    torch._C._ensureCUDADeviceGuardSet()
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with PretendedGpu():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def moved(model: nn.Module) -> nn.Module:
    """The model with its weights on the pretended GPU; tied ones stay tied."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in known:
                    known[id(weight)] = nn.Parameter(OnGpu(weight.detach()), weight.requires_grad)
                module._parameters[name] = known[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnGpu(buffer)
    return model
