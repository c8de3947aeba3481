"""Seconds of one evaluation epoch and of the final test, for ddm and for the plain protocol; and of stacked networks.

    python benchmarks/evaluation.py [--ipc 10] [--test_images 10000] [--repeats 5] [--threads N] [--device cpu]

`plain` runs the protocol like the published scripts: a DataLoader over a TensorDataset, float32, eager, losses and
accuracies read back after every batch. Images are random, 32x32, in 10 classes; the network is a ConvNet.
"""

import argparse
from functools import partial

import numpy as np
import timing
import torch
from step import random_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ddm import device
from ddm.augment import DiffAugment
from ddm.data.images import Batches
from ddm.device import Machine
from ddm.evaluation import protocol, training
from ddm.evaluation.settings import DSA_STRATEGY, ProtocolSettings
from ddm.networks import get_network
from ddm.settings import MachineSettings

NETWORKS, EPOCHS = 5, 11


def print_nothing(line: str) -> None:
    """A log of no interest."""


def augmented(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    return DiffAugment(images, DSA_STRATEGY, generator=generator)


def plain_epoch(loader, net, optimizer, criterion) -> int:
    net.train(optimizer is not None)
    correct = 0
    where = next(net.parameters()).device
    for img, lab in loader:
        img, lab = img.to(where), lab.to(where)
        if optimizer is not None:
            img = augmented(img)
        output = net(img)
        loss = criterion(output, lab)
        correct += np.sum(np.equal(np.argmax(output.data.cpu().numpy(), axis=-1), lab.cpu().numpy()))
        loss.item()
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return correct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--test_images", type=int, default=10000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    where = options.device
    torch.set_num_threads(options.threads)
    machine = device.choose(MachineSettings(compile="on"), where, pixels=0)
    device.keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(10 * options.ipc, 3, 32, 32, generator=generator)
    test = torch.randn(options.test_images, 3, 32, 32, generator=generator)
    labels, test_labels = torch.arange(len(images)) % 10, torch.arange(len(test)) % 10
    criterion = nn.CrossEntropyLoss()

    plain_net = get_network("ConvNet", 3, 10).to(where)
    plain_optimizer = torch.optim.SGD(plain_net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    plain_train = DataLoader(TensorDataset(images, labels), batch_size=256, shuffle=True)
    plain_test = DataLoader(TensorDataset(test, test_labels), batch_size=256)
    net = machine.compiled(machine.laid_out_net(get_network("ConvNet", 3, 10).to(where)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    train = Batches(images.to(where), labels.to(where), 256, shuffle=True)
    testloader = Batches(test.to(where), test_labels.to(where), protocol.TEST_BATCH)

    def epoch() -> None:
        net.train()
        training.one_epoch(net, train, optimizer, criterion, machine, augmented)

    seconds = timing.medians(
        {
            # waits for the device after every batch, as published
            "plain epoch": lambda: plain_epoch(plain_train, plain_net, plain_optimizer, criterion),
            "our epoch": lambda: (epoch(), protocol.wait_for(where)),
            "plain test": lambda: plain_epoch(plain_test, plain_net, None, criterion),
            "our test": lambda: training.test(net, testloader, machine),
        },
        options.repeats,
    )
    print(f"{timing.settings(where)}; ipc {options.ipc}, {options.test_images} test images, {machine.precision}")
    print("| | plain s | ours s | plain / ours |\n|---|---|---|---|")
    for what in ("epoch", "test"):
        plain, ours = seconds[f"plain {what}"], seconds[f"our {what}"]
        print(f"| {what} | {plain:.3f} | {ours:.3f} | {plain / ours:.2f} |")
    precision = "fp32" if torch.device(where).type == "cpu" else "TF32"  # what `choose` has set
    print(f"\n| {NETWORKS} networks, {precision}, {EPOCHS} epochs and test | alone s | together s | together / alone |")
    print("|---|---|---|---|")
    images, labels = images.to(where), labels.to(where)
    for model in ("ConvNet", "ConvNetW32", "LeNet"):
        settings = ProtocolSettings(model=model, num_eval=NETWORKS, epoch_eval_train=EPOCHS - 1)
        runs = {
            together: partial(
                protocol.Evaluator(random_data(10, 32, 100).to(where), settings, Machine(where), together=together),
                *(images, labels, 0, 0, print_nothing),
            )
            for together in (False, True)
        }
        alone, together = timing.medians(runs, options.repeats).values()
        print(f"| {model} | {alone:.2f} | {together:.2f} | {together / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
