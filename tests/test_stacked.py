"""Evaluation networks that are trained together, held against the same networks trained one by one."""

import json

import pytest
import torch
from conftest import command, run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddm import augment, networks
from ddm.data.loading import load
from ddm.device import Machine
from ddm.evaluation import protocol, stacked
from ddm.evaluation.protocol import Evaluator, TrainingSet
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
    evaluator, lines = Evaluator(data, settings, Machine(), together=together, **change), []
    what = TrainingSet(data.normalise(data.x_train[:images]), data.y_train[:images], 0, 5)
    found = evaluator.trained(settings.model, what, range(settings.num_eval), lines.append)
    return evaluator, [one.accuracy for one in found], [one.curve for one in found], lines


@pytest.mark.parametrize("model", COVERED)
def test_networks_together_equal_single_ones(model, data_path, monkeypatch):
    monkeypatch.setitem(networks.ARCHITECTURES, "Residual", residual)
    data, own = load("CIFAR10", data_path), settings(model)
    together, accs, curves, lines = evaluated(data, own, True)
    single, expected, points, expected_lines = evaluated(data, own, False)
    assert accs == expected and list(together.stacks) == [(model, 2)] and not single.stacks
    torch.testing.assert_close(torch.tensor(curves), torch.tensor(points), rtol=1e-4, atol=1e-5)
    vectors = together.stacks[model, 2].vectors()  # the last is that of the network that `single` has trained last
    torch.testing.assert_close(vectors[own.num_eval - 1], networks.flat(single.nets[model]), rtol=0, atol=1e-5)
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


def test_networks_that_a_stack_would_not_compute_as_they_are():
    def made(change):
        net = empty_network("ConvNetD1", 3, 10, (32, 32), "meta")
        change(net)
        return net

    def normed(net):
        torch.nn.utils.parametrizations.weight_norm(net.features[0])

    changes = {
        "frozen": lambda net: net.features[0].weight.requires_grad_(False),
        "hook": lambda net: net.features[0].register_forward_hook(lambda *a: None),
        "hook before": lambda net: net.features[0].register_forward_pre_hook(lambda *a: None),
        "weight norm": normed,
    }
    assert stackable(made(lambda net: None), (3, 32, 32))
    for name, change in changes.items():
        assert not stackable(made(change), (3, 32, 32)), name


def test_own_augmentations_are_trained_one_by_one(data_path, monkeypatch):
    """A new operation and a changed one have no draws of constant shape."""
    data, flip = load("CIFAR10", data_path), augment.OPERATIONS["flip"]
    invert = augment.Operation(lambda size, param, uniform, integers: (), lambda x, param: -x)
    for name, operation in {"invert": invert, "flip": flip._replace(apply=lambda *a: flip.apply(*a))}.items():
        with monkeypatch.context() as patch:
            patch.setitem(augment.OPERATIONS, name, operation)
            own = settings("ConvNetD1", dsa_strategy=f"{name}_crop")
            together, alone = (evaluated(data, own, choice) for choice in (True, False))
            assert together[1:3] == alone[1:3] and not together[0].stacks
            assert not augment.Siamese(own.dsa_strategy, (32, 32), "meta").captured
    assert augment.Siamese("flip_crop", (32, 32), "meta").captured


def test_the_memory_of_networks_that_need_several_values_per_channel():
    net = empty_network("ResNet18BN", 1, 10, (8, 8), "meta")  # the last maps have one pixel
    assert min(stacked.device.map_sizes(net, (1, 8, 8))) > 0 and net.training


def memory_for_two(monkeypatch):
    """No more than two networks can be trained together."""
    real = protocol.train_together

    def train_together(stack, *arguments):
        if stack.K > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(stack, *arguments)

    monkeypatch.setattr(protocol, "train_together", train_together)


def test_an_estimate_survives_too_little_memory(data_path, monkeypatch):
    data = load("CIFAR10", data_path)
    memory_for_two(monkeypatch)
    evaluator = Evaluator(data, settings("ConvNetD1", num_eval=5), Machine(), together=True)
    assert evaluator.network_seconds("ConvNetD1", data.normalise(data.x_train[:8]), data.y_train[:8]) > 0
    assert evaluator.at_once("ConvNetD1", 8, 5) == 2


def test_every_architecture_is_covered():
    for name in networks.UNTAPPED | networks.TAPPABLE:
        assert stackable(empty_network(name, 3, 10, (32, 32), "meta"), (3, 32, 32)), name


def test_too_little_memory_halves_the_number(data_path, monkeypatch):
    data = load("CIFAR10", data_path)
    memory_for_two(monkeypatch)
    own = settings("ConvNetD1", num_eval=5)
    evaluator, accs, _, lines = evaluated(data, own, True)
    assert accs == evaluated(data, own, False)[1] and list(evaluator.stacks) == [("ConvNetD1", 2)]
    assert "continuing with 2 networks" in lines[0] and evaluator.at_once("ConvNetD1", 8, 5) == 2
    assert Evaluator(data, own, Machine()).at_once("ConvNetD1", 8, 5) == 1  # a CPU trains one by one
    assert Evaluator(data, own, Machine(), peers=True, together=True).at_once("ConvNetD1", 8, 5) == 1
    monkeypatch.setattr(stacked.device, "memory_budget", lambda where: 3 * stacked_bytes())
    assert Evaluator(data, own, Machine(), together=True).at_once("ConvNetD1", 8, 20) == 3
    assert Evaluator(data, own, Machine(), together=True).at_once("ConvNetD1", 8, 4) == 2  # 2 + 2, not 3 + 1


def test_too_little_memory_for_a_test_repeats_only_the_test(data_path, monkeypatch):
    data, real, sizes, trainings = load("CIFAR10", data_path), protocol.test_together, [], []

    def test_together(stack, testloader, machine):
        sizes.append(testloader.batch_size)
        if testloader.batch_size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(stack, testloader, machine)

    own = settings("ConvNetD1")
    expected = evaluated(data, own, False)[1]
    monkeypatch.setattr(stacked, "stacks", lambda where: True)
    monkeypatch.setattr(stacked.device, "memory_budget", lambda where: 2**40)
    monkeypatch.setattr(protocol, "test_together", test_together)
    train_together = protocol.train_together
    monkeypatch.setattr(protocol, "train_together", lambda *a: trainings.append(1) or train_together(*a))
    assert evaluated(data, own, True)[1] == expected
    assert sizes == [2048, 1024, 512, 256, 128, 64, 32, 16] and len(trainings) == 1


def test_no_map_has_more_elements_than_32_bits_count(monkeypatch):
    monkeypatch.setattr(stacked, "stacks", lambda where: True)
    monkeypatch.setattr(stacked.device, "memory_budget", lambda where: 2**50)
    net = empty_network("ConvNet", 3, 10, (32, 32), "meta")
    assert stacked.largest(net, (3, 32, 32)) == 128 * 32 * 32
    for K in (1, 10, 20, 60):
        size = stacked.test_batch(net, (3, 32, 32), K, "cuda", 256, 2048)
        assert size * K * 128 * 32 * 32 < 2**31 and size == min(2048, (2**31 - 1) // (K * 128 * 32 * 32))
    K = stacked.at_once(net, (3, 32, 32), "flip", 256, 100, "cuda")
    assert K == 50 and K * 256 * 128 * 32 * 32 < 2**31  # 50 + 50, not 63 + 37


def stacked_bytes() -> int:
    net = empty_network("ConvNetD1", 3, 10, (32, 32), "meta")
    size = sum(p.numel() for p in net.parameters())
    return stacked.device.class_bytes(net, (3, 32, 32), 12, 3) + 24 * size


class Calls(TorchDispatchMode):
    """Counts what a device would run: calls that are not views."""

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []
        self.copies = 0  # from the host

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        where = [a.device.type for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        done = function(*args, **(kwargs or {}))
        if not function.is_view and ("meta" in where or getattr(done, "device", torch.device("cpu")).type == "meta"):
            self.calls.append(str(function))
            self.copies += "cpu" in where
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
        assert calls.copies == 1  # the draws of all epochs
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
        assert entry.get("together", []) == [2] * lines.count("together") * 2
        return entry["accuracies"], [len(curve) for curve in entry["curves"]], lines.count("together")

    expected = run("DM_DDM", data_path, tmp_path / "single")[1]["evaluations"]
    with monkeypatch.context() as patch:
        patch.setattr(stacked, "stacks", lambda where: True)
        found = run("DM_DDM", data_path, tmp_path / "run")[1]["evaluations"]
        accuracies, curves, together = evaluate("together", 2, 4)
    assert [entry["accuracies"] for entry in found] == [entry["accuracies"] for entry in expected]
    log = (tmp_path / "run" / "training.log").read_text()
    assert log.count("trained together") == len(found)
    assert [entry["together"] for entry in found] == [[entry["n"]] * entry["n"] for entry in found]
    assert not any("together" in entry for entry in expected)
    assert together == 2 and curves == [2] * 4
    assert evaluate("alone", 4) == (accuracies, curves, 0)
