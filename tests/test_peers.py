"""--eval_protocol peers: AdamW, CutMix and the best epoch, always labelled."""

import json

import pytest
import torch
from conftest import command, parsed, run
from torch.nn import functional as F
from torchvision.transforms.v2 import CutMix

from ddm.augment import DiffAugment
from ddm.commands import evaluate
from ddm.device import Machine
from ddm.evaluation import peers
from ddm.evaluation.settings import ProtocolSettings
from ddm.networks import empty_network, get_network, initialise


def trained(test, epochs=10, seed=0):
    """A narrow network trained on 12 images: (the network, images, labels, settings, (sums, best accuracy))."""
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(12) % 3
    net = initialise(empty_network("ConvNetW32", 3, 3, (32, 32), "cpu"), torch.Generator().manual_seed(2))
    settings = ProtocolSettings(epoch_eval_train=epochs, lr_net=0.001, batch_train=8)
    generator = torch.Generator().manual_seed(seed)
    outcome = peers.best_epoch(net, images, labels, settings, Machine(), generator, test)
    return net, images, labels, settings, outcome


def test_it_trains_like_a_plain_loop():
    net, images, labels, settings, (sums, _) = trained(lambda: 0.5)
    plain = initialise(get_network("ConvNetW32", 3, 3), torch.Generator().manual_seed(2)).train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.001, weight_decay=5e-4)
    generator, cut, mixed = torch.Generator().manual_seed(0), CutMix(num_classes=3), 0
    for epoch in range(10):
        for group in optimizer.param_groups:
            group["lr"] = 0.001 * 0.5 ** (epoch // 2)  # halved after each fifth of 10 epochs
        for rows in torch.randperm(12, generator=generator).split(8):
            x = DiffAugment(images[rows], settings.dsa_strategy, generator=generator)
            y = F.one_hot(labels[rows], 3).float()
            if torch.rand(1, generator=generator) < 0.5:
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
                x, y = cut(x, labels[rows])
                mixed += 1
            out = plain(x)
            optimizer.zero_grad()
            (-(y * out.log_softmax(1)).sum(1).mean()).backward()
            optimizer.step()
    assert 5 < mixed < 15 and sums.shape == (10, 2) and 0 <= sums[-1, 1] <= 12
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_best_tested_epoch_counts_and_the_global_generator_is_left_alone(monkeypatch):
    monkeypatch.setattr(peers, "TEST_EVERY", 2)
    accuracies = iter([0.3, 0.7, 0.5, 0.1])
    state = torch.get_rng_state()
    *_, (_, best) = trained(lambda: next(accuracies), epochs=7)  # tested after 2, 4, 6 and 7
    assert best == 0.7 and next(accuracies, None) is None
    assert trained(lambda: 0.4, epochs=0)[-1][1] == 0.4
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture(scope="module")
def made(data_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    run("DM_DDM", data_path, folder, "--eval_every", "0", "--preset", "dm", "--num_eval", "1")
    return folder


def test_its_rows_are_labelled_and_have_the_peers_settings(made, data_path, tmp_path, capsys):
    argv = (made, "--data_path", data_path, "--num_eval", "1", "--save_path", tmp_path)
    command("evaluate", *argv, "--eval_protocol", "peers", "--epochs", "3")
    assert "eval_protocol peers |" in (tmp_path / "table.md").read_text()  # also when it is the only row
    command("evaluate", *argv)
    entries = json.loads((tmp_path / "results.json").read_text())["evaluations"]
    assert [(e["eval_protocol"], e["lr_net"], e["batch_train"]) for e in entries] == [
        ("peers", 0.001, 128),
        ("last", 0.01, 256),
    ]
    assert "best of every 100th epoch" in entries[0]["protocol"] and "after the last epoch" in entries[1]["protocol"]
    assert "eval_protocol last" in (tmp_path / "table.md").read_text()


def test_unset_values_are_those_of_the_peers(made, data_path):
    choice = evaluate.settle(parsed("evaluate", made, "--data_path", data_path, "--eval_protocol", "peers"))
    settings = choice.protocol("ConvNetW32")
    assert (settings.epoch_eval_train, settings.lr_net, settings.batch_train) == (2000, 0.001, 128)
