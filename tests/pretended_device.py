"""A CUDA device that isn't there: tensors that say they are on it hold real values on the CPU.

``with PretendedCUDA() as cuda:`` makes ``torch.device("cuda")`` usable. What CUDA refuses is
refused: tensors of two devices in one operation, kernels of the CPU alone, ``numpy()``. Each wait
of the host for the device is counted, as ``torch.cuda.set_sync_debug_mode`` would report it on a
GPU: reading a value, results whose size depends on values, copies between host and device that
are not pinned and ``non_blocking``.

    with PretendedCUDA() as cuda:
        segmenter = sfp.Segmenter("SFP", "Toyland", device="cuda")
        cuda.waits.clear()
        segmenter(image, ["sky", "sea"])
    print(cuda.waits)

It knows what runs in Python: what a C++ operation does inside it, such as ``bincount``'s reading of
its range, is known from the table below.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

ROOT = Path(__file__).parent.parent
# what waits for the device besides copies, and how often: reads of values, results of unknown size,
# and solvers that ask whether they went well
_READS = {
    "item": 1, "tolist": 1, "__bool__": 1, "__int__": 1, "__float__": 1, "__index__": 1,
    "__complex__": 1, "__contains__": 1, "__repr__": 1, "__format__": 1, "is_nonzero": 1,
    "nonzero": 1, "argwhere": 1, "masked_select": 1, "masked_scatter": 0, "unique": 1, "equal": 1,
    "unique_consecutive": 1, "allclose": 1, "bincount": 2, "_unique2": 1, "unique_dim": 1,
    "linalg_eigh": 1, "linalg_eigvalsh": 1, "linalg_svd": 1, "linalg_inv": 1, "linalg_solve": 1,
    "linalg_cholesky": 1, "linalg_lstsq": 1, "linalg_eig": 1, "linalg_svdvals": 1, "svd": 1,
    "inverse": 1, "cholesky": 1, "histogram": 1, "multinomial": 1,
}  # fmt: skip
_BINARY_COMPLAINT = "Expected all tensors to be on the same device"
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d")
_OF_THE_CPU = ("mkldnn", "for_cpu", "onednn")


class Tensors(Tensor):
    """A tensor on the pretended device; it is a plain one on the CPU for all that is below
    Python.
    """

    place: torch.device

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if _ACTIVE is None:
            raise RuntimeError("A tensor of a pretended device is used where there is none.")
        return _ACTIVE.call(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict) -> Tensors:
        with torch._C.DisableTorchFunctionSubclass():
            copied = self.detach().as_subclass(Tensor).clone()
        found = memo[id(self)] = _ACTIVE.on(copied, self.place)
        if isinstance(self, torch.nn.Parameter):
            found._is_param = True
        return found


_ACTIVE: PretendedCUDA | None = None


@dataclass(frozen=True)
class Wait:
    """The host waits for the device.

    Attributes:
        what: the function.
        where: the line of ``sfp`` (else of whoever called it) that does so, "FILE:LINE".
    """

    what: str
    where: str


class PretendedCUDA(TorchFunctionMode):
    """Pretended GPUs in the place of torch.cuda's.

    Args:
        count: how many.
        capability: compute capability; bfloat16 has kernels of memory-efficient attention from
            (8, 0) on.
        memory: bytes of the largest tensor that fits; any if None.

    Attributes:
        waits: every wait of the host, in order.
        queries: calls of the driver that are slow without waiting, such as ``mem_get_info``.
        uploads: copies to the device that don't wait.
        doubles: where tensors of float64 were made on the device.
    """

    def __init__(
        self,
        count: int = 1,
        capability: tuple[int, int] = (9, 0),
        memory: int | None = None,
    ):
        super().__init__()
        self.count, self.capability, self.memory = count, capability, memory
        self.current = 0
        self.waits: list[Wait] = []
        self.queries: list[Wait] = []
        self.uploads: list[Wait] = []
        self.doubles: Counter[str] = Counter()

    # ------------------------------------------------------------------ torch.cuda
    def __enter__(self) -> PretendedCUDA:
        global _ACTIVE
        assert _ACTIVE is None, "one pretended device at a time"
        stack = self._stack = ExitStack()
        stream = mock.Mock()
        stream.synchronize = lambda: self._wait("synchronize")
        found = dict(
            is_available=lambda: True,
            device_count=lambda: self.count,
            current_device=lambda: self.current,
            set_device=self._set_device,
            synchronize=lambda device=None: self._wait("synchronize"),
            current_stream=lambda device=None: stream,
            mem_get_info=self._mem_get_info,
            memory_reserved=lambda device=None: 0,
            memory_allocated=lambda device=None: 0,
            get_device_capability=lambda device=None: self.capability,
            empty_cache=lambda: None,
        )
        for name, value in found.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        _ACTIVE = self
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        global _ACTIVE
        super().__exit__(*error)
        self._stack.close()
        _ACTIVE = None

    def _set_device(self, device: Any) -> None:
        self.current = self._place(torch.device(f"cuda:{device}") if isinstance(device, int)
                                   else torch.device(device)).index  # fmt: skip

    def _mem_get_info(self, device: Any = None) -> tuple[int, int]:
        self.queries.append(Wait("mem_get_info", _line()))
        return 8 << 30, 16 << 30

    def _wait(self, what: str, times: int = 1) -> None:
        self.waits += [Wait(what, _line())] * times

    # ------------------------------------------------------------------ every function of torch
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        name = _name(func)
        special = getattr(self, f"_do_{name.strip('_')}", None)
        if special is not None:
            return special(func, args, kwargs)
        own = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        target = self._target(kwargs)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": None if target is None else torch.device("cpu")}
        there = [value for value in own if isinstance(value, Tensors)]
        if not there and (target is None or target.type != "cuda"):
            return self._really(func, args, kwargs)
        place = self._one_place(name, own, there, target)
        self._refuse(func, name, there)
        if there:
            self._count(name, args, kwargs)
        if there and target is not None and target.type == "cpu":
            place = None  # zeros_like(..., device="cpu") and such
        found = self._really(func, args, kwargs)
        return self._put(found, place, args)

    def _really(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def _target(self, kwargs: dict[str, Any]) -> torch.device | None:
        given = kwargs.get("device")
        if given is None:
            return None
        device = torch.device(f"cuda:{given}") if isinstance(given, int) else torch.device(given)
        return self._place(device)

    def _place(self, device: torch.device) -> torch.device:
        if device.type != "cuda":
            return device
        index = self.current if device.index is None else device.index
        if index >= self.count:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", index)

    def _one_place(
        self, name: str, own: list, there: list, target: torch.device | None
    ) -> torch.device:
        places = {value.place for value in there}
        if name in ("__getitem__", "index_put_", "__setitem__", "index_put"):
            return there[0].place  # indices may lie on the CPU, see _count
        strangers = [v for v in own if not isinstance(v, Tensors) and v.ndim]
        if len(places) > 1 or (there and strangers):
            names = sorted({str(place) for place in places} | {"cpu" for _ in strangers})
            raise RuntimeError(
                f"{_BINARY_COMPLAINT}, but found at least two devices, {' and '.join(names)}!"
                f" ({name} at {_line()})"
            )
        return target if target is not None else places.pop()

    def _refuse(self, func: Any, name: str, there: list[Tensors]) -> None:
        if any(word in str(func) for word in _OF_THE_CPU):
            raise NotImplementedError(
                f"Could not run {name} with arguments from 'CUDA' ({_line()})"
            )
        tf32 = torch.backends.cudnn.conv.fp32_precision != "ieee"
        if name in _CONVOLUTIONS and there and there[0].dtype == torch.float32 and tf32:
            raise AssertionError(f"{name} in float32 would run in TF32 ({_line()})")

    def _count(self, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        times = _READS.get(name, 0)
        if name == "one_hot" and len(args) < 2 and "num_classes" not in kwargs:
            times = 1
        if name == "where" and len(args) == 1:
            times = 1
        if name == "repeat_interleave" and "output_size" not in kwargs:
            times = int(isinstance(args[1] if len(args) > 1 else kwargs.get("repeats"), Tensor))
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], (tuple, list)) else (args[1],)
            indices = [each for each in index if isinstance(each, Tensor) and each.ndim]
            bools = [each for each in indices if each.dtype == torch.bool]
            fills = name == "__setitem__" and not (isinstance(args[2], Tensor) and args[2].ndim)
            times += 0 if fills else len(bools)
            times += sum(not isinstance(each, Tensors) for each in indices)
            value = args[2] if name == "__setitem__" else None
            times += isinstance(value, Tensor) and not isinstance(value, Tensors)
        if times:
            self._wait(name, times)

    def _put(self, found: Any, place: torch.device | None, args: tuple) -> Any:
        def put(value: Any) -> Any:
            if not isinstance(value, Tensor) or isinstance(value, Tensors) or place is None:
                return value
            if self.memory is not None and value.nbytes > self.memory:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {value.nbytes} bytes."
                )
            if value.dtype == torch.float64:
                self.doubles[_line()] += 1
            return self.on(value, place)

        return tree_map(put, found)

    def on(self, value: Tensor, place: torch.device) -> Tensors:
        """A plain tensor as one of the device, its memory shared."""
        with torch._C.DisableTorchFunctionSubclass():
            own = value.as_subclass(Tensors)
        own.place = place
        return own

    # ------------------------------------------------------------------ what asks for the device
    def _do_get(self, func, args, kwargs):  # an attribute of a tensor
        value = args[0]
        attribute = getattr(func.__self__, "__name__", "")
        if isinstance(value, Tensors):
            answers = dict(device=value.place, is_cuda=True, is_cpu=False)
            if attribute in answers:
                return answers[attribute]
        return self._put(self._really(func, args, kwargs), getattr(value, "place", None), args)

    def _do_set(self, func, args, kwargs):  # value.data = moved, as Module.to does
        value, moved = args
        now, then = (isinstance(each, Tensors) for each in (value, moved))
        self._really(func, args, kwargs)
        if then and not now:
            value.__class__, value._is_param = Tensors, True
        elif now and not then:
            value.__class__ = torch.nn.Parameter
        if then:
            value.place = moved.place

    def _do_has_compatible_shallow_copy_type(self, func, args, kwargs):
        return True

    def _do_get_device(self, func, args, kwargs):
        return args[0].place.index if isinstance(args[0], Tensors) else -1

    # ------------------------------------------------------------------ copies
    def _do_to(self, func, args, kwargs):
        value, *given = args
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for each in given:
            if isinstance(each, Tensor):
                device, dtype = each.device, each.dtype
            elif isinstance(each, torch.dtype):
                dtype = each
            elif isinstance(each, (str, torch.device)) or type(each) is int:
                device = each
        positional = [each for each in given if isinstance(each, bool)]
        non_blocking = kwargs.get("non_blocking", bool(positional and positional[0]))
        copy = kwargs.get("copy", False)
        now = value.place if isinstance(value, Tensors) else torch.device("cpu")
        device = self._target(dict(device=device)) or now
        more = {k: v for k, v in kwargs.items() if k in ("memory_format", "copy")}
        if dtype is not None:
            more["dtype"] = dtype
        with torch._C.DisableTorchFunctionSubclass():
            found = torch.Tensor.to(value, **more) if more else value
        if device == now:
            if found is value:
                return value
            return found if now.type == "cpu" else self._put(found, now, args)
        return self._moved(value, found, now, device, non_blocking, copy)

    def _moved(self, value, found, now, device, non_blocking, copy=False):
        """What lies on another device from now on; its memory is another one."""
        pinned = getattr(value, "pinned", False)
        if device.type == "cuda" and now.type == "cpu" and non_blocking and pinned:
            self.uploads.append(Wait("to", _line()))
        elif device.type == "cuda" and now.type == "cuda":
            pass
        else:
            self._wait("to")
        with torch._C.DisableTorchFunctionSubclass():
            found = found.clone() if found.data_ptr() == value.data_ptr() else found
            plain = found.as_subclass(Tensor)
        return plain if device.type == "cpu" else self._put(plain, device, ())

    def _do_cpu(self, func, args, kwargs):
        return self._do_to(func, (args[0], "cpu"), {})

    def _do_cuda(self, func, args, kwargs):
        device = args[1] if len(args) > 1 else kwargs.get("device", "cuda")
        return self._do_to(func, (args[0], "cuda" if device is None else device), {})

    def _do_copy(self, func, args, kwargs):  # copy_
        if func is torch.clone or _name(func) == "__copy__":
            return self._really(func, args, kwargs)
        into, source = args[0], args[1]
        crossing = isinstance(into, Tensors) != isinstance(source, Tensors)
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        if crossing and not (non_blocking and getattr(source, "pinned", False)):
            self._wait("copy_")
        return self._really(func, args, kwargs)

    def _do_pin_memory(self, func, args, kwargs):
        if isinstance(args[0], Tensors):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be")
        with torch._C.DisableTorchFunctionSubclass():
            found = args[0].clone()
        found.pinned = True
        return found

    def _do_is_pinned(self, func, args, kwargs):
        return bool(getattr(args[0], "pinned", False))

    def _do_tensor(self, func, args, kwargs):
        if func is not torch.tensor:
            return self._really(func, args, kwargs)
        target = self._target(kwargs)
        values = tree_flatten(args[0])[0]
        if any(isinstance(value, Tensors) for value in values):
            self._wait("tensor", sum(isinstance(value, Tensors) for value in values))
        found = self._really(func, args, {k: v for k, v in kwargs.items() if k != "device"})
        if target is None or target.type == "cpu":
            return found.as_subclass(Tensor) if isinstance(found, Tensors) else found
        self._wait("tensor")
        return self._put(found, target, args)

    def _do_as_tensor(self, func, args, kwargs):
        if isinstance(args[0], Tensor):
            return self._do_to(func, args[:1], kwargs)
        return self._do_tensor(torch.tensor, args, kwargs)

    def _do_numpy(self, func, args, kwargs):
        if isinstance(args[0], Tensors):
            raise TypeError(f"can't convert cuda device type tensor to numpy ({_line()})")
        return self._really(func, args, kwargs)

    _do_array = _do_numpy

    # ------------------------------------------------------------------ CUDA's own kernels
    def _do_scaled_dot_product_efficient_attention(self, func, args, kwargs):
        q, k, v, bias, _ = args[:5]
        if q.dtype == torch.bfloat16 and self.capability < (8, 0):
            raise RuntimeError("cutlassF: no kernel found to launch!")
        if q.shape[-1] * q.dtype.itemsize % 16:
            raise RuntimeError("cutlassF: no kernel found to launch! (alignment)")
        self._one_place(
            "attention", [q, k, v], [u for u in (q, k, v) if isinstance(u, Tensors)], None
        )
        with torch._C.DisableTorchFunctionSubclass():
            scale = kwargs.get("scale") or q.shape[-1] ** -0.5
            logits = q.float() @ k.float().transpose(-2, -1) * scale
            logits = logits if bias is None else logits + bias
            mixed = (logits.softmax(-1) @ v.float()).to(v.dtype)
            lse = torch.full((*q.shape[:2], -(-q.shape[2] // 32) * 32), float("inf"))
            lse[..., : q.shape[2]] = logits.logsumexp(-1)
        found = (mixed, lse, torch.zeros(()), torch.zeros(()))
        return self._put(found, q.place, args)


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "") or str(func)
    return name.rpartition(".")[2] if name.startswith("_op") else name


def _line() -> str:
    """The innermost line of sfp that is at work, "pipeline/decode.py:70"; else of whoever is."""
    frame, other = sys._getframe(1), ""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT / "sfp")):
            return f"{Path(path).relative_to(ROOT / 'sfp')}:{frame.f_lineno}"
        if not other and path != __file__ and "/torch/" not in path:
            other = f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return other
