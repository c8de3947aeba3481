"""Compilation, precision and memory layout: what makes the same computation faster."""

import contextlib
import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ddm.errors import UserError

F = TypeVar("F", bound=Callable)

# Pixels to condense from which compiling (tens of seconds, once) pays. CPU: measured, about a minute uncompiled.
# CUDA: a guess, about ten minutes of its work; to be measured.
REPAYS = {"cpu": 2**26, "cuda": 2**33}


def choose(args: Namespace, pixels: int) -> None:
    """Settle args.compile ('on' or 'off') and args.precision for experiments that condense with `pixels`.

    Raises UserError where --compile on can't be had; 'auto' says so in one line on stderr and goes on without.
    """
    device = torch.device(args.device).type
    if args.compile == "auto" and pixels < REPAYS.get(device, float("inf")):
        args.compile = "off"
    if args.compile != "off":
        problem = _compiler_problem(args.device)
        if problem and args.compile == "on":
            raise UserError(f"--compile on: torch.compile does not work here ({problem}); leave it at auto")
        if problem:
            print(f"warning: going on uncompiled, torch.compile does not work here ({problem})", file=sys.stderr)
        args.compile = "off" if problem else "on"
    if args.precision is None:
        args.precision = "bf16" if args.compile == "on" and _fast_bf16(device) else "fp32"


def _compiler_problem(device: str) -> str | None:
    """Compile one addition; the first line of what went wrong, or None."""
    # The first compilation imports this module, which remarks on a CUDA toolkit without a GPU: no news to the user.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(torch.add)(torch.ones(2, device=device), 1)
    except Exception as error:  # a missing compiler, headers, triton: each raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"{reason[:100]}; on a CPU it needs a C++ compiler and Python's headers"
    return None


def _fast_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # "Supported" is not enough on a CPU: where bfloat16 is emulated it is several times slower than float32.
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device == "cpu" and torch.backends.mkldnn.is_available() and native


def compiled(function: F, args: Namespace) -> F:
    """`function`, compiled for each of its shapes where args.compile is 'on'."""
    if args.compile != "on":
        return function
    torch._dynamo.config.recompile_limit = 64  # shapes and architectures of a run; the default, 8, gives up early
    return torch.compile(function, dynamic=False)


def laid_out_net(net: nn.Module, args: Namespace) -> nn.Module:
    """A network with channels last in memory, if the run is compiled; for images see `laid_out`."""
    return net.to(memory_format=torch.channels_last) if args.compile == "on" else net


def autocast(device: str | torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Convolutions and products in bfloat16 where `precision` is 'bf16'."""
    if precision == "bf16":
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return contextlib.nullcontext()


def laid_out(images: Tensor, args: Namespace) -> Tensor:
    """Images [..., C, H, W] with channels last in memory, if the run is compiled."""
    if getattr(args, "compile", "off") != "on":  # of other code's args: not there
        return images
    flat = images.flatten(0, -4).contiguous(memory_format=torch.channels_last)
    return flat.unflatten(0, images.shape[:-3])
