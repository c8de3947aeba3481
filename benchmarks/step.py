"""Seconds of one condensation step of ddm, of the plain loop of the published scripts, and of the bare convolutions.

    python benchmarks/step.py [--repeats 5] [--threads N] [--cases CM,MM,...] [--shapes cifar10-ipc10,...]

`plain` is written from the equations and computes like the published scripts: class by class, eager, float32, one
backward at the end, with the C library's default allocator. `ours` is a step of `ddm condense`, with its losses read.
`limit` is only the convolutions of the step, with channels last and in the precision of `ours` (bfloat16 if the device
is fast at it). It has a forward for the real images, and a forward and an input gradient for the synthetic ones. Images
are random.
"""

import argparse
import ctypes
import sys
from collections.abc import Callable

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddm import device, rng
from ddm.augment import DiffAugment
from ddm.commands.condense import DDM
from ddm.commands.settings import DDMSettings
from ddm.data.images import ImageData, Normalisation, by_class
from ddm.methods.condensation import Condensation
from ddm.networks import get_network

PRESETS = DDMSettings.PRESETS
CASES = {  # name -> weights of the terms: L_MMD and at most one more
    "MMD": PRESETS["dm"],
    "ICD": PRESETS["dm"] | {"icd_ratio": 10.0},
    "MM": PRESETS["dm"] | {"mm_ratio": 10000.0},
    "CM": PRESETS["dm"] | {"cm_ratio": 10000.0},
}
BEST = {"best": PRESETS["best"]}  # has no plain loop
SHAPES = {  # name -> classes, image size, ipc, network
    "cifar10-ipc1": (10, 32, 1, "ConvNet"),
    "cifar10-ipc10": (10, 32, 10, "ConvNet"),
    "cifar10-ipc50": (10, 32, 50, "ConvNet"),
    "100classes-ipc10": (100, 32, 10, "ConvNet"),
    "64x64-ipc10": (10, 64, 10, "ConvNetD4"),
}


def random_data(classes: int, size: int, per_class: int) -> ImageData:
    """A data set of random images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.randint(0, 256, (len(labels), 3, size, size), dtype=torch.uint8, generator=generator)
    names, normalisation = [str(c) for c in range(classes)], Normalisation.of([0.5] * 3, [0.25] * 3)
    return ImageData("random", names, normalisation, images, labels, images, labels, by_class(labels, classes))


def started(case: str, data: ImageData, **changes: object) -> Condensation:
    """The maker of a `ddm condense` run, on the CPU unless `device` says otherwise, before its first step."""
    settings = DDM.settled(DDMSettings(**(CASES | BEST)[case] | {"device": "cpu"} | changes))
    device.keep_freed_memory()
    maker = Condensation(data, settings, DDM.objective, DDM.needed(settings))
    maker.prepare()
    maker.start(0, None)
    return maker


# --- the plain loop ----------------------------------------------------------------------------------------


def plain_style(case: str, real_maps: list[Tensor], syn_maps: list[Tensor]) -> Tensor:
    total = 0
    for real, syn in zip(real_maps, syn_maps, strict=True):
        if case == "CM":
            grams = [(m.flatten(2) @ m.flatten(2).transpose(1, 2) / m[0].numel()).mean(0) for m in (real, syn)]
            total = total + (grams[1] - grams[0]).pow(2).sum()
        else:
            means = [m.mean(0).flatten(1) for m in (real, syn)]
            mu = [m.mean(1) for m in means]
            sd = [(m.var(1) + 1e-5).sqrt() for m in means]
            total = total + (F.mse_loss(mu[1], mu[0]) + F.mse_loss(sd[1], sd[0])) / 2
    return total / len(real_maps)


def plain_diversity(phi: Tensor, k: int) -> Tensor:
    distance = (phi[:, None] - phi[None]).norm(dim=2).detach().fill_diagonal_(torch.inf)
    m = phi[distance.topk(k, largest=False).indices].mean(1)
    return -F.kl_div(F.log_softmax(m, 1), F.log_softmax(phi, 1), reduction="batchmean", log_target=True)


def plain_step(
    case: str, images: Tensor, optimizer: torch.optim.Optimizer, data: ImageData, it: int, settings: DDMSettings
) -> None:
    model = f"{settings.model}_gram" if case in ("MM", "CM") else settings.model
    net = get_network(model, 3, data.num_classes, data.im_size).requires_grad_(False).to(images.device)
    loss = torch.zeros((), device=images.device)
    for c in range(data.num_classes):
        seed = rng.seed_of(0, 0, it, c, "plain")
        drawn = data.draw(c, settings.batch_real, torch.Generator().manual_seed(seed))
        img_real = DiffAugment(data.batch(drawn), settings.dsa_strategy, seed)
        img_syn = DiffAugment(images[c * settings.ipc : (c + 1) * settings.ipc], settings.dsa_strategy, seed)
        with torch.no_grad():
            real = net.embed(img_real)
        syn = net.embed(img_syn)
        phi_real, phi_syn = (out[0] if net.taps else out for out in (real, syn))
        loss = loss + (phi_real.mean(0) - phi_syn.mean(0)).pow(2).sum()
        if net.taps:
            loss = loss + (settings.mm_ratio + settings.cm_ratio) * plain_style(case, real[1], syn[1])
        elif case == "ICD" and settings.ipc > 1:
            loss = loss + settings.icd_ratio * plain_diversity(phi_syn, settings.k)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()


# --- the limit ---------------------------------------------------------------------------------------------


def bare_convolutions(data: ImageData, settings: DDMSettings) -> Callable[[], None]:
    net, calls = get_network(settings.model, 3, data.num_classes, data.im_size), []
    dtype = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}[settings.precision]
    for layer in net.features:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs[0].shape[1:])))
    net(torch.zeros(1, 3, *data.im_size))

    def inputs(n: int) -> list[Tensor]:
        tensors = [torch.randn(n, *shape).to(dtype) for _, shape in calls]
        return [x.contiguous(memory_format=torch.channels_last) for x in tensors]

    real, syn = inputs(settings.batch_real), [x.requires_grad_() for x in inputs(settings.ipc)]
    weights = [m.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last) for m, _ in calls]

    def run() -> None:
        for _ in range(data.num_classes):
            for (m, _), w, x_real, x_syn in zip(calls, weights, real, syn, strict=True):
                with torch.no_grad():
                    F.conv2d(x_real, w, padding=m.padding)
                out = F.conv2d(x_syn, w, padding=m.padding)
                torch.autograd.grad(out, x_syn, out.detach())

    return run


# --- the measurement ---------------------------------------------------------------------------------------


def default_allocator() -> None:
    """Restore glibc's usual handling of large blocks: map and unmap those above 32 MiB."""
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(device.M_MMAP_MAX, 65536)
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        mallopt(device.M_TRIM_THRESHOLD, 2**26)


def measure(case: str, shape: str, repeats: int, batch_real: int) -> None:
    classes, size, ipc, model = SHAPES[shape]
    data = random_data(classes, size, batch_real)
    maker = started(case, data, ipc=ipc, batch_real=batch_real, model=model, compile="on")
    settings = maker.plan.settings
    images = maker.images().clone().requires_grad_()
    optimizer = torch.optim.SGD([images], lr=settings.lr_img, momentum=settings.momentum_img)
    its = {"ours": 0, "plain": 0}

    def run_ours() -> None:
        device.keep_freed_memory()
        its["ours"] += 1
        maker.step(its["ours"])
        maker.check()

    def run_plain() -> None:
        default_allocator()
        its["plain"] += 1
        plain_step(case, images, optimizer, data, its["plain"], settings)

    convolutions = bare_convolutions(data, settings)

    def run_limit() -> None:
        device.keep_freed_memory()
        convolutions()

    seconds = timing.medians({"plain": run_plain, "ours": run_ours, "limit": run_limit}, repeats)
    plain, ours, limit = seconds.values()
    print(
        f"| {shape} | {case} | {settings.precision} | {plain:.3f} | {ours:.3f} | {limit:.3f} "
        f"| {plain / ours:.2f} | {ours / limit:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch_real", type=int, default=256)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{timing.settings()}; batch_real {options.batch_real}, median of {options.repeats} interleaved repeats\n")
    print("| shape | terms | precision | plain s | ours s | limit s | plain / ours | ours / limit |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for shape in options.shapes.split(","):
        for case in options.cases.split(","):
            measure(case, shape, options.repeats, options.batch_real)


if __name__ == "__main__":
    main()
