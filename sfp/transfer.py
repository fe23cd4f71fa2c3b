"""Between host and device without needless waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sfp.errors import SFPError


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. A copy from the CPU to CUDA goes by pinned memory, in the stream's
    order: the host does not wait until all that was asked before is done, as it does in ``.to``.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one dtype on one device, copied to the CPU together: one wait for all.

    On the CPU they are returned as they are.
    """
    if not tensors or tensors[0].device.type == "cpu":
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.clone().view(own.shape) for part, own in zip(parts, tensors, strict=True)]


class Doubts:
    """Questions to numbers on a device, such as whether all are finite, asked with one wait.

    What follows goes on as if all were well; whoever shows a result first calls ``settle``.
    """

    def __init__(self):
        self.fine: list[Tensor] = []
        self.otherwise: list[Callable[[], None]] = []

    def require(self, fine: Tensor, otherwise: Callable[[], None]) -> None:
        """``fine``, a bool of no axis, must be true; else ``otherwise`` raises.

        On the CPU, where nothing is waited for, it is asked at once.
        """
        if fine.device.type == "cpu":
            if not bool(fine):
                otherwise()
            return
        self.fine.append(fine)
        self.otherwise.append(otherwise)

    def settle(self, with_them: Sequence[Tensor] = ()) -> list[Tensor]:
        """Raise what is to be raised, for the first that is not fine.

        Args:
            with_them: int64 tensors of the same device, which come to the CPU in the same copy.

        Returns:
            Those on the CPU.
        """
        asked, otherwise = self.fine, self.otherwise
        self.fine, self.otherwise = [], []
        if not asked:
            return to_host(with_them)
        device = (with_them or asked)[0].device  # a picture may have come on another GPU
        flags = torch.stack([fine.to(device) for fine in asked])
        flags, *found = to_host([flags.long(), *with_them])
        for fine, raise_it in zip(flags.tolist(), otherwise, strict=True):
            if not fine:
                raise_it()
        return found


def count_of_each(values: Tensor, classes: int) -> Tensor:
    """How often each of 0 to classes - 1 is there, (K,) int64; others must not be there.

    On a GPU ``bincount`` would read the least and the largest value first.
    """
    values = values.flatten()
    if values.device.type == "cpu":
        return torch.bincount(values, minlength=classes)
    counts = torch.zeros(classes, dtype=torch.long, device=values.device)
    return counts.scatter_add_(0, values, torch.ones_like(values))


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions of float32 in float32; cuDNN's default, TF32, keeps 10 bits of 23.

    With CUDA torch.compile begins a new graph here.
    """
    if not torch.cuda.is_available():
        yield
        return
    settings = torch.backends.cudnn.conv
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def require_exact_products() -> None:
    """Raises SFPError where torch would make products of float32 matrices in less."""
    usual = torch.get_float32_matmul_precision()
    if usual != "highest":
        raise SFPError(
            f"torch's precision of float32 products is {usual!r}, which changes figures unseen; set"
            " it back by torch.set_float32_matmul_precision('highest'), and precision='bf16' or"
            " 'fp16' instead (config: model.precision)."
        )
