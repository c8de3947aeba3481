"""`ddm score`: what ddranking is given and what follows from its accuracies; the package itself, where installed."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import command, parsed, tiny_arrays

from ddm.commands import score
from ddm.data.loading import load

INSTALLED = importlib.util.find_spec("ddranking") is not None


@pytest.fixture
def saved_set(tmp_path, data_path):
    """Two real images of each class of the tiny CIFAR10, as a [0, 1] pair with shuffled labels."""
    data = load("CIFAR10", str(data_path))
    rows = torch.cat([own[:2] for own in data.indices])[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    torch.save([data.x_train[rows].float() / 255, data.y_train[rows]], tmp_path / "set.pt")
    return tmp_path / "set.pt"


def test_the_scores_of_known_accuracies():
    """HLR 36 and IOR 20 points give 0.236; the package, which takes the exponential of points, says -0.156."""
    run = score.Run(condensed=50, random=30, whole=86)
    assert (run.hlr, run.ior) == (36, 20) and run.lrs(0.5) == pytest.approx(0.2362, abs=1e-4)
    assert score.Run(50, 50, 50).lrs(0.5) == pytest.approx((1 - np.exp(-1)) / (np.e - np.exp(-1)))


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_images_are_sorted_and_in_the_space_of_the_package(name, tmp_path):
    """CIFAR100 too is normalised with CIFAR10's constants there."""
    arrays = tiny_arrays()
    if name == "CIFAR100":
        arrays = {key: value[:200].repeat(10, 0)[:240] for key, value in arrays.items()}
        for split in ("train", "test"):
            arrays[f"y_{split}"] = np.arange(240) % 100
    np.savez(tmp_path / f"{name}.npz", **arrays)
    data = load(name, str(tmp_path))
    images = torch.rand(2 * data.num_classes, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(data.num_classes).flip(0).repeat(2)
    torch.save([images, labels], tmp_path / "set.pt")
    settings = parsed("score", tmp_path / "set.pt", "--dataset", name, "--space", "unit")
    found, sorted_labels = score.sorted_set(settings, data)
    assert torch.equal(sorted_labels, torch.arange(data.num_classes).repeat_interleave(2))
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1)
    last = data.num_classes - 1
    torch.testing.assert_close(found[:2], (images[[last, last + data.num_classes]] - mean) / std, rtol=0, atol=1e-5)
    assert found.dtype == torch.float32 and found.device.type == "cpu"


def test_mistakes_end_in_one_line(saved_set, data_path, tmp_path, capsys):
    common = [saved_set, "--data_path", data_path, "--save_path", tmp_path / "out"]
    torch.save([torch.rand(3, 3, 32, 32), torch.tensor([0, 0, 1])], tmp_path / "uneven.pt")
    wrong = [
        (common, "give --dataset"),
        ([*common, "--dataset", "FashionMNIST"], "CIFAR10, CIFAR100, TinyImageNet"),
        ([tmp_path / "uneven.pt", *common[1:], "--dataset", "CIFAR10"], "equal numbers"),
        (
            [*common, "--dataset", "CIFAR10", "--model", "Nonsense"],
            "ConvNet-3" if INSTALLED else "pip install --no-deps",
        ),
    ]
    for argv, says in wrong:
        with pytest.raises(SystemExit) as stop:
            command("score", *argv)
        error = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2 and error.startswith("error:") and says in error
    if INSTALLED:
        wrong_name = [*common, "--dataset", "CIFAR10", "--model", "Nonsense", "--full_acc", 80]
        with pytest.raises(SystemExit):
            command("score", *wrong_name)
        assert "can't build it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not INSTALLED, reason="ddranking is not installed")
def test_the_package_itself(saved_set, data_path, tmp_path, monkeypatch, capsys):
    """One run on tiny data; the same command again only reports; another run would have another seed."""
    argv = [saved_set, "--dataset", "CIFAR10", "--data_path", data_path, "--num_epochs", 10, "--num_eval", 1]
    command("score", *argv, "--save_path", tmp_path / "out")
    said = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (run,) = results["evaluations"]
    assert all(0 < run[name] <= 100 for name in ("condensed", "random", "whole"))
    assert results["scores"]["HLR"]["mean"] == pytest.approx(run["whole"] - run["condensed"])
    monkeypatch.setattr(score, "make_scorer", None)
    command("score", *argv, "--save_path", tmp_path / "out")
    assert capsys.readouterr().out == said[said.index("HLR:") :]
