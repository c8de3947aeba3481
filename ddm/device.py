"""Properties of the machine: device, memory, precision, compilation."""

import contextlib
import copy
import ctypes
import gc
import logging
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ddm import torchrun
from ddm.errors import UserError, first_line
from ddm.settings import MachineSettings

F = TypeVar("F", bound=Callable)
T = TypeVar("T")

# Compiling (tens of seconds, once) pays off from so many pixels to condense. CPU: measured, about a minute uncompiled.
# CUDA: 20 to 35 s, for 14 of the 18 ms that an H100 takes for 2.6 million pixels.
REPAYS = {"cpu": 2**26, "cuda": 2**32}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # options of glibc's mallopt (malloc.h)
# --precision -> whether CUDA rounds the factors of float32 convolutions and matrix products to TF32. With bf16 this
# concerns what autocast leaves in float32, such as the products of L_RR. cuSOLVER, which solves L_RR, ignores it.
TF32 = {"fp32": False, "tf32": True, "bf16": True}
# Controllers of a control group (none: version 2) -> where it is mounted, its files of limit and use, and the statistic
# of droppable pages.
LIMITS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
OUT_OF_MEMORY = ("can't allocate memory", "_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "MPS backend out of")


@dataclass(frozen=True)
class Machine:
    """The device, precision and compilation of networks. The default is plain torch on the CPU."""

    device: str = "cpu"
    precision: str = "fp32"
    compile: str = "off"

    def compiled(self, function: F) -> F:
        """`function`, compiled for each input shape if the run is compiled."""
        if self.compile != "on":
            return function
        torch._dynamo.config.recompile_limit = 64  # shapes and architectures of a run; the default 8 is too few
        return torch.compile(function, dynamic=False)

    @property
    def channels_last(self) -> bool:
        """Whether channels are last in memory: on CUDA, whose tensor cores read this layout, and in compiled runs."""
        return self.compile == "on" or torch.device(self.device).type == "cuda"

    def laid_out_net(self, net: nn.Module) -> nn.Module:
        """The network, in the memory layout of `channels_last`; for images see `laid_out`."""
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def laid_out(self, images: Tensor) -> Tensor:
        """Images [..., C, H, W], in the memory layout of `channels_last`."""
        if not self.channels_last:
            return images
        flat = images.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, images.shape[:-3])

    def autocast(self) -> contextlib.AbstractContextManager:
        """Compute convolutions and matrix products in bfloat16 if the precision is 'bf16'."""
        if self.precision == "bf16":
            return torch.autocast(torch.device(self.device).type, torch.bfloat16)
        return contextlib.nullcontext()


def choose(settings: MachineSettings, device: str, pixels: int) -> Machine:
    """Choose precision and compilation for experiments that condense with `pixels` pixels, and set the precision.

    If torch.compile does not work, --compile on raises UserError, and auto prints one warning line on stderr.
    Another one says that bf16 is emulated.
    """
    kind, compile, precision = torch.device(device).type, settings.compile, settings.precision
    if compile == "auto" and pixels < REPAYS.get(kind, float("inf")):
        compile = "off"
    if compile != "off":
        problem = compiler_problem(device)
        if problem and compile == "on":
            raise UserError(f"--compile on: torch.compile does not work here ({problem}); use --compile auto")
        if problem:
            warn_uncompiled(problem)
        compile = "off" if problem else "on"
    if precision is None:
        precision = "bf16" if compile == "on" and fast_bf16(kind) else "tf32"
    elif precision == "bf16" and not fast_bf16(kind):
        warn(f"this {kind} emulates bf16, many times slower than --precision fp32")
    if precision == "tf32" and not has_tf32(kind):
        precision = "fp32"  # recorded as it is computed
    set_precision(kind, precision)
    return Machine(device, precision, compile)


def set_precision(kind: str, precision: str) -> None:
    """Set how this process multiplies float32 numbers on a kind of device; only CUDA has a choice.

    torch's defaults are TF32 for convolutions and float32 for matrix products.
    """
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = TF32[precision]


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Inside, this module may select a GPU and set the precision of CUDA; then both are as before.

    For programs that use this package as a library.
    """
    if not torch.cuda.is_available():
        yield
        return
    convolution, product = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [_precision_flag(convolution, "conv"), _precision_flag(product)]
    number = torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # asking would open a context there
    try:
        yield
    finally:
        for flag in before:
            setattr(*flag)
        if torch.cuda.is_initialized() and torch.cuda.current_device() != number:
            torch.cuda.set_device(number)


def _precision_flag(backend: Any, part: str = "") -> tuple[Any, str, Any]:
    """The object, name and value of the flag that a program has set.

    Torch refuses to read the older `allow_tf32` after a program has set the newer `fp32_precision` of a part.
    """
    try:
        return backend, "allow_tf32", backend.allow_tf32
    except RuntimeError:
        newer = getattr(backend, part) if part else backend
        return newer, "fp32_precision", newer.fp32_precision


def compiler_problem(device: str) -> str | None:
    """Compile one addition; return the first line of the error, or None."""
    # The first compilation imports this module. It warns about a missing CUDA toolkit, even without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(torch.add)(torch.ones(2, device=device), 1)
    except Exception as error:  # a missing compiler, header or triton: the types differ
        return f"{first_line(error, 100)}; on a CPU it needs a C++ compiler and Python's headers"
    return None


def warn_uncompiled(problem: str) -> None:
    """Print a warning with the problem of the compiler."""
    warn(f"running uncompiled: torch.compile does not work here ({problem})")


def warn(text: str) -> None:
    """Print a warning line on stderr, on the first rank."""
    if torchrun.rank_and_world()[0] == 0:
        print(f"warning: {text}", file=sys.stderr)


def fast_bf16(kind: str) -> bool:
    """Whether a kind of device ('cpu', 'cuda': the selected GPU) computes bfloat16 faster than float32."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # "Supported" is not enough on a CPU: emulated bfloat16 is several times slower than float32.
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return kind == "cpu" and torch.backends.mkldnn.is_available() and native


def repeated(precision: str | None, device: str) -> str | None:
    """The precision that a set's file records; another one, and a warning line, if it is not fast on `device`."""
    kind = torch.device(device).type
    fast = {"bf16": fast_bf16, "tf32": has_tf32}.get(precision)
    if fast is None or fast(kind):
        return precision
    now = "tf32" if has_tf32(kind) else "fp32"
    warn(f"this {kind} has no fast {precision}, in which the set was made: using {now}, which rounds differently")
    return now


def has_tf32(kind: str) -> bool:
    """Whether a kind of device ('cpu', 'cuda': the selected GPU) has TF32, as NVIDIA GPUs since Ampere."""
    return kind == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)


def select(device: str) -> str:
    """The device, after selecting it if it is a numbered GPU. Must precede all other use of CUDA.

    Otherwise torch judges bfloat16 on GPU 0, and pins memory and compiles in a context there.
    """
    if torch.device(device).type == "cuda" and torch.device(device).index is not None:
        torch.cuda.set_device(device)
    return device


def find_device(name: str) -> str:
    """'auto' or a torch device name -> an existing device. Raises UserError for an unknown or missing device."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: choose auto, cpu, cuda, cuda:0 .. or mps") from None
    present = {"cpu": True, "cuda": cuda and (device.index or 0) < torch.cuda.device_count(), "mps": mps}
    if not present.get(device.type, False):
        available = "cuda" if cuda else "mps" if mps else "cpu only"
        raise UserError(f"device {name!r} does not exist here: torch finds {available}; choose auto")
    return "cpu" if device.type == "cpu" else str(device)


# --- memory --------------------------------------------------------------------------------------------------


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks (no effect with other C libraries).

    By default glibc returns feature maps to the system at every layer and gets them back zeroed, page by page. On a
    2-core CPU this takes a third of an eager step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(device: str) -> int | None:
    """Free bytes on a device; None if unknown.

    Host memory is Linux's "MemAvailable", or what a limit of Slurm or a container leaves, if that is less.
    """
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return min([available, *left_by_limits()])


def left_by_limits(root: Path = Path("/")) -> Iterator[int]:
    """The bytes that each memory limit of this process leaves; its control groups and their parents have limits.

    Both versions of control groups are read, below `root`.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:  # number:controllers:path
        _, controllers, path = line.split(":", 2)
        for controller in LIMITS.keys() & set(controllers.split(",")):
            mounted, *files = LIMITS[controller]
            group = root / mounted / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root / mounted):
                    with contextlib.suppress(OSError, ValueError):  # no such file, or the limit "max"
                        yield left_by_limit(folder, *files)


def left_by_limit(group: Path, limit: str, used: str, droppable: str) -> int:
    """The bytes that the limit of a control group leaves; pages of files that the system can drop count as free."""
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    rest = int((group / limit).read_text()) - int((group / used).read_text())
    return max(rest + int(statistics.get(droppable, 0)), 0)


def memory_budget(device: str) -> int | None:
    """Bytes that a step may use: a power of two, at most half of the memory; None if unknown.

    On CUDA this is half of all memory, so that other processes on the GPU do not change how a run is rounded. If too
    little is free, the step is repeated in smaller parts. On a CPU it is half of the free memory, as the system would
    kill the run. The power of two hides its small changes.
    """
    cuda = device.startswith("cuda")
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else free_memory(device)
    return memory if memory is None else 2 ** ((memory // 2).bit_length() - 1)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that a device, a library on it (cuDNN, cuBLAS) or the C library is out of memory."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(text in str(error) for text in OUT_OF_MEMORY)


def if_memory_allows(function: Callable[[], T]) -> T | None:
    """The result of a function; None if memory ran out, after all that it held is released."""
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Not in the block above: until its end, the traceback holds the function's tensors.
    release()
    return None


@contextlib.contextmanager
def memory_named(advice: str) -> Iterator[None]:
    """Raise UserError with `advice` if memory runs out inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: {advice}") from None


def release() -> None:
    """Return cached memory to the device after an out-of-memory error."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory(device: str) -> int | None:
    """Peak bytes on the CUDA device, else of this process; None if unknown (Windows)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def class_bytes(net: nn.Module, image: tuple[int, ...], batch_real: int, ipc: int) -> int:
    """Estimate, rather high, the bytes of one class in a step; image is [C, H, W].

    The gradient needs every feature map of a synthetic image, and backward needs as much again. A real image needs
    only its pixels: drawn, normalised and augmented.
    """
    return 4 * (2 * ipc * sum(map_sizes(net, image)) + 4 * batch_real * math.prod(image))


def map_sizes(net: nn.Module, image: tuple[int, ...]) -> list[int]:
    """The number of elements in the output of each layer for one image [C, H, W]; `net` is on the meta device."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: tuple, output: Any) -> None:
        sizes.append(sum(x.numel() for x in tree_leaves(output) if isinstance(x, Tensor)))

    net = copy.deepcopy(net).eval()  # BatchNorm does not train on one image
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(note)
    with torch.no_grad(), torch.device("meta"):  # also for what a forward creates
        net(torch.empty(1, *image))
    return sizes
