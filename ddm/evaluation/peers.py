"""The evaluation of NCFM (Wang et al., CVPR 2025) and its peers, only for comparison with their papers.

It reports the best of several epochs **on the test images**, so its numbers are higher than those of protocol.py and
must not be mixed with them. AdamW with weight decay 5e-4, whose learning rate is halved after each fifth of the epochs;
DSA; and CutMix in half of the batches.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddm.augment import DiffAugment
from ddm.data.images import Batches, Normalised
from ddm.device import Machine
from ddm.evaluation.settings import ProtocolSettings
from ddm.evaluation.training import Watch, train_step

WEIGHT_DECAY = 5e-4  # of NCFM, whatever that of our protocol is
TEST_EVERY = 100  # epochs
MIXED = 0.5  # the share of batches with CutMix


def best_epoch(
    net: nn.Module,
    images: Tensor | Normalised,
    labels: Tensor,
    settings: ProtocolSettings,
    machine: Machine,
    generator: torch.Generator,
    test: Callable[[], float],
    watch: Watch = iter,
) -> tuple[Tensor, float]:
    """Train `net` for settings.epoch_eval_train epochs; return sums, and the best test accuracy.

    The sums of loss and correct images of each epoch, [epochs, 2], are on the device. `test` returns the accuracy on
    the test images; it is called every 100 epochs and after the last one.
    """
    from torchvision.transforms.v2 import CutMix  # imported here: it takes a second, and only this protocol needs it

    E, images, labels = settings.epoch_eval_train, images.to(machine.device), labels.to(machine.device)
    cut = CutMix(num_classes=net.classifier.out_features)
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr_net, weight_decay=WEIGHT_DECAY)
    milestones = [max(1, k * E // 5) for k in range(1, 5)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.5)
    best, totals = test() if E == 0 else 0.0, []
    for epoch in watch(range(1, E + 1)):
        net.train()
        total = torch.zeros(2, device=machine.device)
        for img, lab in Batches(images, labels, settings.batch_train, shuffle=True, generator=generator):
            img = DiffAugment(img, settings.dsa_strategy, generator=generator)
            target = lab
            if torch.rand(1, generator=generator) < MIXED:
                seed = int(torch.randint(2**31, (1,), generator=generator))
                with torch.random.fork_rng(devices=[]):  # CutMix draws from torch's global generator
                    torch.manual_seed(seed)
                    img, target = cut(img, lab)
            loss, output = train_step(net, optimizer, F.cross_entropy, machine.laid_out(img), target, machine)
            total += torch.stack([loss * len(lab), (output.argmax(1) == lab).sum()])
        schedule.step()
        totals.append(total)
        if epoch % TEST_EVERY == 0 or epoch == E:
            best = max(best, test())
    return torch.stack(totals or [torch.zeros(2)]), best
