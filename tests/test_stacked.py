"""Evaluation networks that are trained together, held against the same networks trained one by one."""

import json

import pytest
import torch
from conftest import command, run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddm import networks
from ddm.data.loading import load
from ddm.device import Machine
from ddm.evaluation import protocol, stacked
from ddm.evaluation.protocol import Evaluator
from ddm.evaluation.settings import ProtocolSettings
from ddm.evaluation.stacked import Stack, stackable
from ddm.networks import BasicBlock, Network, Trunk, empty_network

COVERED = ["ConvNetD1", "ConvNetGN", "ConvNetLN", "ConvNetBN", "LeNet", "AlexNet", "MLP", "Residual"]


def residual(channel: int, num_classes: int, im_size: tuple[int, int] = (32, 32)) -> Network:
    """A narrow ResNet18 of one stage."""
    trunk = Trunk(channel, im_size)
    trunk.conv(4, 3, padding=1, bias=False)
    trunk.add(
        nn.Sequential(BasicBlock(trunk, 8, 2, "batchnorm", False), BasicBlock(trunk, 8, 1, "instancenorm", False))
    )
    return Network(trunk.layers, trunk.size, num_classes)


def settings(model, **change) -> ProtocolSettings:
    own = {"model": model, "epoch_eval_train": 1, "batch_train": 3, "num_eval": 2, "lr_net": 0.002}
    return ProtocolSettings(**own | change)


def evaluated(data, settings, together, images=8, **change):
    """The Evaluator, its accuracies, curves and lines."""
    evaluator, curves, lines = Evaluator(data, settings, Machine(), together=together, **change), [], []
    x, y = data.normalise(data.x_train[:images]), data.y_train[:images]
    accs = evaluator.accuracies(settings.model, x, y, 0, 5, range(settings.num_eval), lines.append, curves)
    return evaluator, accs, curves, lines


@pytest.mark.parametrize("model", COVERED)
def test_networks_together_equal_single_ones(model, data_path, monkeypatch):
    monkeypatch.setitem(networks.ARCHITECTURES, "Residual", residual)
    data, own = load("CIFAR10", data_path), settings(model)
    together, accs, curves, lines = evaluated(data, own, True)
    single, expected, points, expected_lines = evaluated(data, own, False)
    assert accs == expected and list(together.stacks) == [(model, 2)] and not single.stacks
    torch.testing.assert_close(torch.tensor(curves), torch.tensor(points), rtol=1e-4, atol=1e-5)
    values = together.stacks[model, 2].of(own.num_eval - 1)  # the network that `single` has trained last
    for name, parameter in single.nets[model].named_parameters():
        torch.testing.assert_close(values[name], parameter, rtol=0, atol=1e-5)
    assert len(lines) == own.num_eval + 1 and "trained together" in lines[0]
    assert [line.split(":")[0] for line in lines[1:]] == [line.split(":")[0] for line in expected_lines]


class Doubled(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("layer", [Doubled(), nn.Dropout(0.5), nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")])
def test_other_networks_are_trained_one_by_one(layer, data_path, monkeypatch):
    assert not stackable(Network([layer, nn.Flatten()], 3072, 10).to("meta"), (3, 32, 32))
    if isinstance(layer, Doubled):
        own = lambda channel, classes, im_size: Network([layer, nn.Flatten()], 3072, classes)  # noqa: E731
        monkeypatch.setitem(networks.ARCHITECTURES, "Own", own)
        evaluator, accs, *_ = evaluated(load("CIFAR10", data_path), settings("Own"), True)
        assert len(accs) == 2 and not evaluator.stacks


def test_every_architecture_is_covered():
    for name in networks.UNTAPPED | networks.TAPPABLE:
        assert stackable(empty_network(name, 3, 10, (32, 32), "meta"), (3, 32, 32)), name


def test_too_little_memory_halves_the_number(data_path, monkeypatch):
    data, real = load("CIFAR10", data_path), protocol.train_together

    def train_together(stack, *arguments):
        if stack.K > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(stack, *arguments)

    monkeypatch.setattr(protocol, "train_together", train_together)
    own = settings("ConvNetD1", num_eval=5)
    evaluator, accs, _, lines = evaluated(data, own, True)
    assert accs == evaluated(data, own, False)[1] and list(evaluator.stacks) == [("ConvNetD1", 2)]
    assert "continuing with 2 networks" in lines[0] and evaluator.at_once("ConvNetD1", 8, 5) == 2
    assert Evaluator(data, own, Machine()).at_once("ConvNetD1", 8, 5) == 1  # a CPU trains one by one
    assert Evaluator(data, own, Machine(), peers=True, together=True).at_once("ConvNetD1", 8, 5) == 1
    monkeypatch.setattr(stacked.device, "free_memory", lambda where: 2 * 3 * stacked_bytes())
    assert Evaluator(data, own, Machine(), together=True).at_once("ConvNetD1", 8, 20) == 3
    assert Evaluator(data, own, Machine(), together=True).at_once("ConvNetD1", 8, 4) == 2  # 2 + 2, not 3 + 1


def stacked_bytes() -> int:
    net = empty_network("ConvNetD1", 3, 10, (32, 32), "meta")
    size = sum(p.numel() for p in net.parameters())
    return stacked.device.class_bytes(net, (3, 32, 32), 12, 3) + 24 * size


class Calls(TorchDispatchMode):
    """Counts what a device would run: calls that are not views."""

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        where = [a.device.type for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        done = function(*args, **(kwargs or {}))
        if not function.is_view and ("meta" in where or getattr(done, "device", torch.device("cpu")).type == "meta"):
            self.calls.append(str(function))
        return done


def test_device_calls_and_no_sync():
    """20 networks of 3 blocks; on the meta device a sync raises."""
    own, K, counts = settings("ConvNet", batch_train=256), 20, []
    x, y = torch.empty(100, 3, 32, 32, device="meta"), torch.empty(100, dtype=torch.long, device="meta")
    machine = Machine("meta")
    for epochs in (11, 21):
        stack = Stack(empty_network("ConvNet", 3, 10, (32, 32), "meta"), K)
        generators = [torch.Generator().manual_seed(k) for k in range(K)]
        stack.initialise(generators)
        with Calls() as calls:
            totals = protocol.train_together(stack, x, y, own.but(epoch_eval_train=epochs - 1), machine, generators)
        assert totals.shape == (epochs, K, 2) and totals.device.type == "meta"
        counts.append(len(calls.calls))
    assert (counts[1] - counts[0]) / 10 / K < 5, calls.calls[-120:]
    test = [(torch.empty(2048, 3, 32, 32, device="meta"), torch.empty(2048, dtype=torch.long, device="meta"))]
    with Calls() as calls, pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # it reads at its end
        protocol.test_together(stack, test, machine)
    assert 15 < len(calls.calls) < 30, calls.calls


def test_a_run_and_evaluate_train_networks_together(data_path, tmp_path, monkeypatch):
    """As on an accelerator; networks are added to a finished evaluation."""

    def evaluate(folder, *numbers):
        own = ("--model", "ConvNetW32", "--epoch_eval_train", "1", "--data_path", data_path)
        sets = next((tmp_path / "run").glob("res_*.pt"))
        for number in numbers:
            command("evaluate", sets, *own, "--num_eval", number, "--save_path", tmp_path / folder)
        (entry,) = json.loads((tmp_path / folder / "results.json").read_text())["evaluations"]
        lines = (tmp_path / folder / "training.log").read_text()
        return entry["accuracies"], [len(curve) for curve in entry["curves"]], lines.count("together")

    expected = run("DM_DDM", data_path, tmp_path / "single")[1]["evaluations"]
    with monkeypatch.context() as patch:
        patch.setattr(stacked, "stacks", lambda where: True)
        found = run("DM_DDM", data_path, tmp_path / "run")[1]["evaluations"]
        accuracies, curves, together = evaluate("together", 2, 4)
    assert [entry["accuracies"] for entry in found] == [entry["accuracies"] for entry in expected]
    log = (tmp_path / "run" / "training.log").read_text()
    assert log.count("trained together") == len(found)
    assert together == 2 and curves == [2] * 4
    assert evaluate("alone", 4) == (accuracies, curves, 0)
