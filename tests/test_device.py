"""Steps on torch's meta device, where a CPU tensor in the computation or a host sync fails."""

import pytest
import torch
from conftest import QUICK, RECIPES, matcher, parse
from torch import nn

from ddm.data import data as datasets
from ddm.augment import DiffAugment
from ddm.methods.condense import Synthetic, condensation_step, real_images
from ddm.networks import empty_network
from ddm.methods.sampling import Random
from ddm.evaluation.training import train_step

EVERY_CHOICE = (
    "--rr_ratio 1 --icd_ratio 1 --icd_form spread --style_tap conv --style_stats image --style_scale relative "
    "--published_accumulator"
)


@pytest.mark.parametrize(
    ("recipe", "argv", "terms"),
    [*((recipe, "", 4 if recipe == "DM_DDM" else 2) for recipe in RECIPES), ("DM_DDM", EVERY_CHOICE, 5)],
)
def test_a_condensation_step(recipe, argv, terms, data_path):
    args = parse(recipe, *QUICK, "--data_path", str(data_path), "--ipc", "6", *argv.split())
    args.class_chunk = 4
    data = datasets.load("CIFAR10", data_path)
    args.device = "meta"
    under, data = matcher(recipe, args, data), data.to("meta")
    syn_set = Synthetic.start(real_images(data, args, 0), args)
    image_syn = syn_set.images
    assert image_syn.device.type == "meta" and next(under.net.parameters()).device.type == "meta"
    for iteration in range(12):  # every operation of the strategy gets its turn
        step = condensation_step(under, syn_set, Random(data, args), 0, iteration, args)
        assert len(step.terms) == terms and all(
            value.device.type == "meta" for value in [*step.terms.values(), *step[1:3]]
        )
    assert image_syn.grad.device.type == "meta"


def test_an_evaluation_step():
    net = empty_network("ConvNet", 3, 10, (32, 32), "meta")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.empty(8, 3, 32, 32, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        images_aug = DiffAugment(images, "color_crop_cutout_flip_scale_rotate", generator=g)
        assert train_step(net, optimizer, nn.CrossEntropyLoss(), images_aug, labels).device.type == "meta"
    assert train_step(net, None, nn.CrossEntropyLoss(), images, labels).shape == (2,)
