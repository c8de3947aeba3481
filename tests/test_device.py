"""Steps on torch's meta device, where a CPU tensor in the computation or a host sync fails."""

import sys
import threading

import pytest
import torch
from conftest import QUICK, RECIPES, ROOT, maker, parse
from torch import nn

from ddm import device, rng
from ddm.augment import DiffAugment
from ddm.data import loading
from ddm.device import Machine
from ddm.evaluation.training import train_step
from ddm.methods import distribution, matching, sampling
from ddm.networks import empty_network

sys.path.insert(0, str(ROOT / "benchmarks"))
import device_calls
from device_calls import Calls, random_data

EVERY_CHOICE = (
    "--rr_ratio 1 --icd_ratio 1 --icd_form spread --style_tap conv --style_stats image --style_scale relative "
    "--published_accumulator"
)
BALANCED = "--weights balanced --mm_ratio 1 --cm_ratio 1 --rr_ratio 1 --icd_ratio 1 --style_tap norm --optimizer adam"


@pytest.mark.parametrize(
    ("recipe", "argv", "terms"),
    [
        *((recipe, "", 4 if recipe == "DM_DDM" else 2) for recipe in RECIPES),
        ("DM_DDM", EVERY_CHOICE, 5),
        ("DM_DDM", "--dsa_strategy none --preset dm", 1),
        ("DM_DDM", BALANCED, 5),
        ("DM_DDM", "--preset fast,best", 2),
        ("DM_DDM", "--preset fast,strong --real_sampling random --ipc 1", 3),
        ("DM_DDM", "--preset fast,best --networks online --real_sampling random", 2),
    ],
)
def test_a_condensation_step(recipe, argv, terms, data_path, monkeypatch):
    parameters = sum(p.numel() for p in empty_network("ConvNet", 3, 10, (32, 32), "meta").parameters())
    points = torch.zeros(2, 9, parameters, dtype=torch.half)
    monkeypatch.setattr(distribution, "trained_pool", lambda data, plan: points)  # training reads single values
    monkeypatch.setattr(sampling, "class_points", lambda data, *_: [torch.zeros(len(x), 9) for x in data.indices])
    settings = parse(recipe, *QUICK, "--data_path", data_path, "--ipc", "6", "--class_chunk", "4", *argv.split())
    made = maker(recipe, settings.but(device="meta"), loading.load("CIFAR10", data_path))
    made.prepare()
    made.start(0, None)
    image_syn = made.syn_set.images
    assert image_syn.device.type == "meta" and next(made.matcher.net.parameters()).device.type == "meta"
    calls = []
    for iteration in range(1, 13):  # every operation of the strategy gets its turn
        with Calls() as counted:
            made.step(iteration)
        calls.append(counted.device)
        _, step = made.pending.pop()
        assert len(step.names) == len(step.terms) == terms
        assert all(value.device.type == "meta" for value in step[:3])
        assert counted.copies == 1 or made.networks.online
    # As a CUDA graph needs it; the first step allocates the memory of the draws.
    assert made.networks.online or all(call == calls[1] for call in calls[1:])
    made.ahead.close()


@pytest.mark.parametrize(("classes", "case", "most"), [(10, "best", 270), (100, "MMD", 230)])
def test_a_step_has_few_device_calls(classes, case, most, monkeypatch):
    """The table of docs/speed.md; before draws were made ahead, L_MMD had 361 and 690."""
    for module in (device, matching):  # free memory decides about the classes of a pass
        monkeypatch.setattr(module, "memory_budget", lambda where: 32 * 2**30)
    data = random_data(classes, 32, 256)
    threads = []
    seed_of = rng.seed_of
    monkeypatch.setattr(
        rng, "seed_of", lambda *where: (threads.append((where[2], threading.get_ident())), seed_of(*where))[1]
    )
    mine, replayed, same = device_calls.ours(case, data, ipc=10, batch_real=256)
    assert mine.device.total() <= most and mine.copies == 1 and same
    assert (replayed.device.total(), replayed.copies, replayed.host) <= (4, 1, 40)
    threads = [thread for iteration, thread in threads if iteration > 0]
    assert len(threads) > 100 and threading.get_ident() not in threads  # the step's thread seeds no generator


def test_real_images_are_selected_on_the_device_with_three_calls_each(data_path, monkeypatch):
    monkeypatch.setattr(sampling, "class_points", lambda data, *_: [torch.zeros(len(x), 9) for x in data.indices])
    data = loading.load("CIFAR10", data_path)  # eight images per class
    balanced = sampling.SAMPLERS["balanced"](data.to("meta"), 6, 0, range(10))
    drawn = torch.stack(balanced.indices(range(10), torch.Generator().manual_seed))
    with Calls() as counted:
        rows = balanced.selected(drawn.to("meta"))
    assert drawn.shape == (10, 8) and rows.shape == (10, 6) and rows.device.type == "meta"
    assert counted.device.total() <= 3 * 6 + 20


def test_an_evaluation_step():
    net = empty_network("ConvNet", 3, 10, (32, 32), "meta")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.empty(8, 3, 32, 32, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        images_aug = DiffAugment(images, "color_crop_cutout_flip_scale_rotate", generator=g)
        loss, output = train_step(net, optimizer, nn.CrossEntropyLoss(), images_aug, labels, Machine("meta"))
        assert loss.device.type == output.device.type == "meta"
    loss, output = train_step(net, None, nn.CrossEntropyLoss(), images, labels, Machine("meta"))
    assert loss.shape == () and output.shape == (8, 10)
