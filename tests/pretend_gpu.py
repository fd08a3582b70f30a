"""A pretend GPU: tensors that live on the CPU but say "cuda:0", refuse what CUDA refuses, and note what waits.

With TITOKCTL_PRETEND=cuda:1 it is the second of two: events and pinned memory belong to the current device, which must
be that one. With TITOKCTL_PRETEND=mps it is an Apple GPU, "mps:0", which has no float64, and no pinned memory.

`pretend()` makes torch believe in one GPU. Real values are computed. Noted are operations that mix devices, which CUDA
refuses, and those that make the host wait for the device, with the functions of the package that lead there; among
the first are also operations that have no deterministic kernel on a GPU, while torch is asked for such kernels. torch's
own code sees through the pretence in places, since the tensors' real device is the CPU; EXCUSED names them.
"""

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

KIND, _, _NUMBER = os.environ.get("TITOKCTL_PRETEND", "cuda").partition(":")
GPU = torch.device(KIND, int(_NUMBER or 0))
_CURRENT = threading.local()  # number: of the device that is the current one of a thread, 0 until it is chosen
# Functions whose products are promised in float32, whatever precision is around.
_EXACT = frozenset({"quantizers._nearest"})
_MISSING = (torch.float64, torch.complex128, torch.uint16, torch.uint32, torch.uint64) if KIND == "mps" else ()
WAITS: Counter[str] = Counter()  # "what < function < function ...": how often
MIXED: Counter[str] = Counter()
# torch asks for the real device of gradients, and moves their norm there; it makes the mask of causal attention there.
EXCUSED = frozenset({"learner.update", "add < transformer.attend"})
_LARGE = 1e9  # multiplications of a product that is timed, not used; it is not computed
_WAITING = frozenset({
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal",
})  # fmt: skip
# From the documentation of torch.use_deterministic_algorithms.
_NOT_DETERMINISTIC = frozenset({
    "adaptive_max_pool2d_backward", "_adaptive_avg_pool2d_backward", "upsample_linear1d_backward",
    "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward", "upsample_bicubic2d_backward",
    "_upsample_bicubic2d_aa_backward", "reflection_pad1d_backward", "reflection_pad2d_backward", "nll_loss2d_forward",
    "nll_loss2d_backward", "grid_sampler_2d_backward", "histc", "put_", "cumsum", "median",
})  # fmt: skip
_INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
_FACTORIES = frozenset({
    torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.randn, torch.rand, torch.randint,
    torch.tensor, torch.as_tensor, torch.linspace, torch.eye, torch.randperm, torch.scalar_tensor, torch.empty_strided,
})  # fmt: skip
T = torch.Tensor


def _note(found: Counter[str], what: str) -> None:
    chain, frame = [], sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/titokctl/" in path:
            chain.append(f"{path.rsplit('/', 1)[-1].removesuffix('.py')}.{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    if not EXCUSED & {*chain[:1], " < ".join([what, *chain[:1]])}:
        found[" < ".join([what, *chain])] += 1


class GpuTensor(torch.Tensor):
    """A tensor on the pretend device; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor, requires_grad: bool = False) -> "GpuTensor":
        if real.dtype in _MISSING:
            raise TypeError(f"the MPS framework doesn't support {real.dtype}")
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            layout=real.layout, device=real.device, requires_grad=requires_grad,
        )  # fmt: skip
        made.held = real
        return made  # type: ignore[no-any-return]

    def __init__(self, real: torch.Tensor, requires_grad: bool = False) -> None:
        pass

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                copied: Any = GpuTensor(self.held.clone())
            if isinstance(self, torch.nn.Parameter) or getattr(self, "_is_param", False):
                copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _moved(func, args, kwargs or {})
        if found is not NotImplemented:
            return found
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        host = [t for t in tensors if not isinstance(t, GpuTensor)]
        if name in _WAITING:
            _note(WAITS, name)
        if name in _NOT_DETERMINISTIC and torch.are_deterministic_algorithms_enabled():
            _note(MIXED, f"{name} has no deterministic kernel")
        if name in ("addmm", "mm", "bmm") and torch.backends.cuda.matmul.allow_tf32:
            _note_tf32(name)
        if name in _INDEXED:
            _note_indices(args)
        elif name == "copy_" and host:
            _note_copy(args, kwargs)
        elif host and name not in ("_to_copy", "set_") and any(t.dim() for t in host):
            _note(MIXED, name)
        if name == "mm" and args[0].numel() * args[1].shape[-1] > _LARGE:
            return kwargs.get("out")
        plain, options = tree_map(_real, args), tree_map(_real, kwargs)
        if "device" in options:
            options["device"] = torch.device("cpu")
        options.pop("pin_memory", None)
        out = func(*plain, **options)
        if name == "copy_" and not isinstance(args[0], GpuTensor):
            return args[0]
        out = tree_map(lambda t: GpuTensor(t) if type(t) in (torch.Tensor, torch.nn.Parameter) else t, out)
        return return_and_correct_aliasing(func, args, kwargs, out)


def _note_tf32(name: str) -> None:
    found: Counter[str] = Counter()
    _note(found, f"{name} in TF32")
    MIXED.update({chain: count for chain, count in found.items() if _EXACT & set(chain.split(" < "))})


def _note_indices(args: Any) -> None:
    for index in args[1] or []:
        if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
            _note(WAITS, "index by a mask")
        elif isinstance(index, torch.Tensor) and not isinstance(index, GpuTensor):
            _note(WAITS, "index on the host")
    if len(args) > 2 and isinstance(args[2], torch.Tensor) and not isinstance(args[2], GpuTensor):
        _note(WAITS, "index_put of a number on the host")


def _note_copy(args: Any, kwargs: Any) -> None:
    unwaited = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    if not (unwaited and any(getattr(t, "_pinned", False) for t in args[:2])):
        _note(WAITS, "copy_")


def _real(x: Any) -> Any:
    return x.held if isinstance(x, GpuTensor) else x


def _names_gpu(device: Any) -> bool | None:
    return None if device is None else torch.device(device).type == KIND


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return GpuTensor(x.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _real(gradients[0])


def _to_gpu(x: torch.Tensor, unwaited: bool) -> torch.Tensor:
    pinned = getattr(x, "_pinned", False) or getattr(x._base, "_pinned", False)
    if not (pinned and unwaited):
        _note(WAITS, "to the device")
    with torch._C.DisableTorchFunction():
        copied = x.clone()
    if copied.requires_grad and not x.is_leaf:
        return _ToGpu.apply(copied)  # type: ignore[no-any-return, no-untyped-call]
    return GpuTensor(copied.detach()).requires_grad_(x.requires_grad)


def _to_host(x: Any) -> torch.Tensor:
    _note(WAITS, "to the host")
    return x.held.detach().clone()  # type: ignore[no-any-return]


def _moved(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a function that has to do with devices returns; NotImplemented for others."""
    x = args[0] if args else None
    if getattr(func, "__name__", "") == "__get__" and isinstance(x, GpuTensor):
        answers = {id(T.device): GPU, id(T.is_cuda): KIND == "cuda", id(T.is_cpu): False}
        answers[id(T.is_mps)] = KIND == "mps"
        return answers.get(id(getattr(func, "__self__", None)), NotImplemented)
    if isinstance(x, GpuTensor):
        if func in (T.numpy, T.__array__):
            _note(MIXED, "numpy")
            raise TypeError(f"can't convert {GPU} device type tensor to numpy. Use Tensor.cpu()")
        if func is T.tolist:
            _note(WAITS, "tolist")
            return x.held.detach().tolist()
        if func is T.cpu:
            return _to_host(x)
        if func is T.get_device:
            return 0
    if func is T.pin_memory:
        _note_pinned()
        return _pinned(x.clone())
    if func is T.to:
        return _converted(x, args[1:], kwargs)
    if func in _FACTORIES:
        return _built(func, args, dict(kwargs))
    return NotImplemented


def _note_pinned() -> None:
    if KIND == "mps":
        _note(MIXED, "pinned memory")
    _note_current("pinned memory")


def _note_current(what: str) -> None:
    if KIND == "cuda" and getattr(_CURRENT, "number", 0) != GPU.index:
        _note(MIXED, f"{what} of another device")


def _pinned(x: torch.Tensor) -> torch.Tensor:
    x._pinned = True  # type: ignore[attr-defined]
    return x


def _converted(x: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    device, dtype, unwaited = kwargs.get("device"), kwargs.get("dtype"), kwargs.get("non_blocking", False)
    for each in args:
        if isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, str | torch.device):
            device = each
        elif isinstance(each, torch.Tensor):
            device, dtype = each.device, each.dtype
    wanted, rest = _names_gpu(device), {k: v for k, v in kwargs.items() if k in ("memory_format", "copy")}
    if wanted is None:
        return NotImplemented
    if isinstance(x, GpuTensor) != wanted:
        x = _to_gpu(x, unwaited) if wanted else _to_host(x)
    if dtype in (None, x.dtype) and not rest:
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return T.to(x, dtype or x.dtype, **rest)


def _built(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    pinned, on_gpu = kwargs.pop("pin_memory", False), _names_gpu(kwargs.get("device"))
    if func is torch.as_tensor and isinstance(args[0], torch.Tensor):
        return NotImplemented if on_gpu is None else _converted(args[0], (), kwargs)
    if not (on_gpu or pinned):
        return NotImplemented
    if on_gpu:
        kwargs["device"] = "cpu"
    with torch._C.DisableTorchFunction():
        made = func(*args, **kwargs)
    if not on_gpu:
        _note_current("pinned memory")
        return _pinned(made)
    if func in (torch.tensor, torch.as_tensor):
        _note(WAITS, "tensor of numbers on the host")
    return GpuTensor(made)


class _Pretence(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _moved(func, args, kwargs or {})
        if found is not NotImplemented:
            return found
        out = func(*args, **(kwargs or {}))
        if func in (T.permute, T.view, T.__getitem__) and getattr(args[0], "_pinned", False):
            _pinned(out)
        return out


class _Device:
    def __init__(self, device: Any) -> None:
        self._number = torch.device(device).index or 0

    def __enter__(self) -> None:
        self._before, _CURRENT.number = getattr(_CURRENT, "number", 0), self._number

    def __exit__(self, *error: Any) -> None:
        _CURRENT.number = self._before


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        _note_current("event")

    def synchronize(self) -> None:
        _note(WAITS, "event")


@contextlib.contextmanager
def pretend() -> Iterator[None]:
    """Let this process and its threads see one GPU; for a process of its own, since it changes torch for good."""
    run, autocast = threading.Thread.run, torch.autocast.__init__

    def pretending(thread: threading.Thread) -> None:
        with _Pretence():
            run(thread)

    def on_cpu(self: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> None:
        kind = "cpu" if device_type == KIND else device_type
        autocast(self, kind, torch.bfloat16 if dtype == torch.float16 else dtype, enabled, cache_enabled)

    def inference_mode(mode: Any = True) -> Any:  # wrappers can't be made in torch's own
        if callable(mode):
            return torch.no_grad()(mode)
        return torch.no_grad() if mode else torch.enable_grad()

    torch.__future__.set_overwrite_module_params_on_conversion(True)
    replaced: dict[tuple[Any, str], Callable[..., Any] | type] = {
        (threading.Thread, "run"): pretending,
        (torch.autocast, "__init__"): on_cpu,
        (torch, "inference_mode"): inference_mode,
        (torch, "manual_seed"): torch.default_generator.manual_seed,
        (torch.nn.Module, "compile"): lambda *_, **__: None,
        (torch.cuda, "Event"): _Event,
        (torch.cuda, "device"): _Device,
        (torch.cuda, "device_count"): lambda: GPU.index + 1,
        (torch.cuda, "get_device_name"): lambda *_: "pretended",
        (torch.cuda, "is_available"): lambda: True,
        (torch.cuda, "is_initialized"): lambda: True,
        (torch.cuda, "is_bf16_supported"): lambda including_emulation=True: True,
        (torch.cuda, "is_current_stream_capturing"): lambda: False,  # asks the driver in builds for CUDA
        (torch.cuda, "max_memory_allocated"): lambda *_: 0,
        (torch.cuda, "synchronize"): lambda *_: _note(WAITS, "synchronize"),
    }
    if KIND == "mps":
        replaced = {key: value for key, value in replaced.items() if key[0] is not torch.cuda}
        replaced[torch.backends.mps, "is_available"] = lambda: True
    with contextlib.ExitStack() as stack:
        for (owner, name), value in replaced.items():
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(_Pretence())
        yield
