"""Seconds of one condensation step: ours, the plain loop of the published scripts, and the bare convolutions.

    python benchmarks/step.py [--repeats 5] [--threads N] [--cases CM,MM,...] [--shapes cifar10-ipc10,...]

`plain` is written from the equations, class by class, eager, float32, one backward at the end, under the C library's
default allocator, as the published scripts compute it. `limit` is only the convolutions of the step with channels
last, in the precision that `ours` chose (bfloat16 where the device is fast at it): forward for the real images, forward
and input gradient for the synthetic ones. Images are random.
"""

import argparse
import ctypes
import importlib
import sys
from argparse import Namespace
from collections.abc import Callable

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddm import flags
from ddm import memory
from ddm import rng
from ddm.augment import DiffAugment
from ddm.methods.condense import Synthetic, condensation_step, prepare
from ddm.data.data import ImageData
from ddm.networks import get_network
from ddm.methods.sampling import Random

CPU = ["--device", "cpu"]  # where the images and the plain loop are
CASES = {  # term -> recipe, its flags
    "MMD": ("DM_KNearest", ["--icd_ratio", "0"]),
    "ICD": ("DM_KNearest", []),
    "MM": ("DM_MeanStd_Matching", []),
    "CM": ("DM_GramMatching", []),
}
SHAPES = {  # name -> classes, image size, ipc, network
    "cifar10-ipc1": (10, 32, 1, "ConvNet"),
    "cifar10-ipc10": (10, 32, 10, "ConvNet"),
    "cifar10-ipc50": (10, 32, 50, "ConvNet"),
    "100classes-ipc10": (100, 32, 10, "ConvNet"),
    "64x64-ipc10": (10, 64, 10, "ConvNetD4"),
}


def random_data(classes: int, size: int, per_class: int) -> ImageData:
    """Random images in the shape of a data set."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.randint(0, 256, (len(labels), 3, size, size), dtype=torch.uint8, generator=generator)
    constants = torch.tensor([[0.5] * 3, [0.25] * 3])[:, :, None, None]
    indices = [torch.nonzero(labels == c).flatten() for c in range(classes)]
    names = [str(c) for c in range(classes)]
    return ImageData("random", names, [0.5] * 3, [0.25] * 3, images, labels, images, labels, constants, indices)


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


def plain_step(case: str, images: Tensor, optimizer: torch.optim.Optimizer, data: ImageData, it: int, args) -> None:
    net = get_network(args.model, 3, data.num_classes, data.im_size).requires_grad_(False)
    loss = torch.zeros(())
    for c in range(data.num_classes):
        seed = rng.seed_of(0, 0, it, c, "plain")
        drawn = data.draw(c, args.batch_real, torch.Generator().manual_seed(seed))
        img_real = DiffAugment(data.batch(drawn), args.dsa_strategy, seed)
        img_syn = DiffAugment(images[c * args.ipc : (c + 1) * args.ipc], args.dsa_strategy, seed)
        with torch.no_grad():
            real = net.embed(img_real)
        syn = net.embed(img_syn)
        phi_real, phi_syn = (out[0] if net.taps else out for out in (real, syn))
        loss = loss + (phi_real.mean(0) - phi_syn.mean(0)).pow(2).sum()
        if net.taps:
            loss = loss + args.style_ratio * plain_style(case, real[1], syn[1])
        elif case == "ICD" and args.ipc > 1:
            loss = loss + args.icd_ratio * plain_diversity(phi_syn, args.k)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()


# --- the limit ---------------------------------------------------------------------------------------------


def bare_convolutions(data: ImageData, args: Namespace) -> Callable[[], None]:
    net, calls = get_network(args.model, 3, data.num_classes, data.im_size), []
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.precision]
    for layer in net.features:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs[0].shape[1:])))
    net(torch.zeros(1, 3, *data.im_size))

    def inputs(n: int) -> list[Tensor]:
        made = [torch.randn(n, *shape).to(dtype) for _, shape in calls]
        return [x.contiguous(memory_format=torch.channels_last) for x in made]

    real, syn = inputs(args.batch_real), [x.requires_grad_() for x in inputs(args.ipc)]
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
    """What glibc settles on by itself for large blocks: map and unmap those above 32 MiB."""
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(memory.M_MMAP_MAX, 65536)
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        mallopt(memory.M_TRIM_THRESHOLD, 2**26)


def measure(case: str, shape: str, repeats: int, batch_real: int) -> None:
    recipe_name, own_flags = CASES[case]
    classes, size, ipc, model = SHAPES[shape]
    recipe = importlib.import_module(recipe_name)
    model += "_gram" if recipe_name != "DM_KNearest" else ""
    argv = ["--ipc", str(ipc), "--batch_real", str(batch_real), "--model", model, "--compile", "on", *own_flags, *CPU]
    args = flags.resolve(recipe.make_parser().parse_args(argv))
    statistics = recipe.settle(args)
    data = random_data(classes, size, batch_real)
    matcher = prepare(data, args, recipe.objective, statistics)
    start = data.normalise(data.x_train.unflatten(0, (classes, batch_real))[:, :ipc]).flatten(0, 1)
    ours, plain = Synthetic.start(start.clone(), args), Synthetic.start(start.clone(), args)
    its = {"ours": 0, "plain": 0}

    def run_ours() -> None:
        memory.keep_freed_memory()
        its["ours"] += 1
        step = condensation_step(matcher, ours, Random(data, args), 0, its["ours"], args)
        step.finite.item()

    def run_plain() -> None:
        default_allocator()
        its["plain"] += 1
        plain_step(case, plain.images, plain.optimizer, data, its["plain"], args)

    convolutions = bare_convolutions(data, args)

    def run_limit() -> None:
        memory.keep_freed_memory()
        convolutions()

    found = timing.medians({"plain": run_plain, "ours": run_ours, "limit": run_limit}, repeats)
    print(
        f"| {shape} | {case} | {args.precision} | {found['plain']:.3f} | {found['ours']:.3f} | {found['limit']:.3f} "
        f"| {found['plain'] / found['ours']:.2f} | {found['ours'] / found['limit']:.2f} |",
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
