"""How much memory there is, how much a step takes, and how to make the allocator keep it."""

import ctypes
import gc
import math
import sys

import torch
from torch import Tensor, nn

# Options of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Ask glibc to keep large blocks once freed, where the C library is glibc.

    By default it hands feature maps back to the system at every layer, and takes them again page by page, zeroed:
    on a 2-core CPU that is a third of an eager step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(device: str) -> int | None:
    """Bytes that can still be had on a device; None where the system does not tell.

    Of host memory it is what Linux calls available; a container's own limit is not looked at.
    """
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is a device's, or the C library's, way of saying so."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release() -> None:
    """Give memory that the allocator keeps back to the device, after one attempt was too large."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory(device: str) -> int | None:
    """Bytes taken at most: of the CUDA device, else by this process; None where the system does not tell (Windows)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def class_bytes(net: nn.Module, image: tuple[int, ...], batch_real: int, ipc: int) -> int:
    """Bytes that one class takes in a step, estimated roughly and high: image is [C, H, W].

    A gradient keeps every feature map of a synthetic image, and backward needs as much again; of a real image it is
    the pixels, drawn, normalised and augmented.
    """
    sizes: list[int] = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        sizes.append(output.numel())

    with torch.device("meta"):
        hooks = [module.register_forward_hook(note) for module in net.modules() if not list(module.children())]
        with torch.no_grad():
            net(torch.empty(1, *image))
        for hook in hooks:
            hook.remove()
    return 4 * (2 * ipc * sum(sizes) + 4 * batch_real * math.prod(image))
