"""The evaluation protocol, held against the one written out in full."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from ddm.augment import DiffAugment, ParamDiffAug
from ddm.compat import TensorDataset, epoch, evaluate_synset
from ddm.data.images import Batches
from ddm.data.loading import load
from ddm.device import Machine
from ddm.evaluation import protocol, training
from ddm.evaluation.protocol import Evaluator, describe, get_eval_pool, summary
from ddm.evaluation.settings import ProtocolSettings
from ddm.networks import get_network

STRATEGY = "color_crop_flip"


def settings(**change) -> ProtocolSettings:
    own = ProtocolSettings(epoch_eval_train=6, batch_train=8, dsa_strategy=STRATEGY, num_eval=2, model="ConvNetW32")
    return own.but(**change)


def published() -> Namespace:
    """The same settings as scripts of the DC/DSA/DM family have them."""
    args = {"device": "cpu", "lr_net": 0.01, "epoch_eval_train": 6, "batch_train": 8, "dsa": True}
    return Namespace(**args, dsa_strategy=STRATEGY, dsa_param=ParamDiffAug())


def augmentation(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return DiffAugment(images, STRATEGY, param=ParamDiffAug(), generator=generator)


def small_set(n=20):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 5


def plain_protocol(net, images, labels, test_images, test_labels, args, seed):
    """Spec: epochs 0 .. E, SGD 0.01 / 0.9 / 5e-4, new optimizer with lr / 10 after epoch E // 2 + 1, last epoch."""
    g = torch.Generator().manual_seed(seed)
    E = args.epoch_eval_train
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr_net, momentum=0.9, weight_decay=5e-4)
    epochs = 0
    net.train()
    for ep in range(0, E + 1):
        order = torch.randperm(len(images), generator=g)
        for i in range(0, len(images), args.batch_train):
            batch = order[i : i + args.batch_train]
            x = DiffAugment(images[batch], args.dsa_strategy, param=args.dsa_param, generator=g)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels[batch]).backward()
            optimizer.step()
        if ep == E // 2 + 1:
            optimizer = torch.optim.SGD(net.parameters(), lr=args.lr_net * 0.1, momentum=0.9, weight_decay=5e-4)
        epochs += 1
    assert epochs == E + 1
    net.eval()
    with torch.no_grad():
        return (net(test_images).argmax(1) == test_labels).float().mean().item()


@pytest.fixture(params=["ConvNetW32", "ConvNetBN"])
def written_out(request):
    """A fresh network, its test images, and what the protocol written out makes of the network from seed 7."""
    (images, labels), tested = small_set(), small_set(31)
    ours, plain = (get_network(request.param, 3, 5, (8, 8)) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    expected = plain_protocol(plain, images, labels, *tested, published(), seed=7)
    return ours, Batches(*tested, 16), plain, expected


def assert_same(net, plain):
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_training_equals_the_protocol_written_out(written_out):
    net, testloader, plain, expected = written_out
    images, labels = small_set()
    generator = torch.Generator().manual_seed(7)
    curve = training.train(net, images, labels, settings(), Machine(), augmentation, generator)
    assert training.test(net, testloader, Machine()) == pytest.approx(expected, abs=1e-6)
    assert len(curve) == 7 and all(loss > 0 and 0 <= accuracy <= 1 for loss, accuracy in curve)
    assert_same(net, plain)


@pytest.mark.parametrize("seed", [7, None])
def test_evaluate_synset_equals_the_protocol_written_out(seed, written_out):
    """Without a seed, the published function draws from torch's global generator."""
    net, testloader, plain, expected = written_out
    lines, args = [], published()
    torch.manual_seed(8 if seed else 7)
    trained, acc_train, acc_test = evaluate_synset(0, net, *small_set(), testloader, args, seed=seed, log=lines.append)
    assert acc_test == pytest.approx(expected, abs=1e-6) and 0 <= acc_train <= 1 and trained is net
    assert_same(net, plain)
    assert len(lines) == 1 and f"{acc_test:.4f}" in lines[0]


def test_the_last_epoch_counts_and_the_test_set_is_seen_once(data_path, monkeypatch):
    modes, real_epoch = [], training.one_epoch

    def one_epoch(net, batches, optimizer, *a, **k):
        assert net.training == (optimizer is not None)
        modes.append("train" if net.training else "test")
        return real_epoch(net, batches, optimizer, *a, **k)

    monkeypatch.setattr(training, "one_epoch", one_epoch)
    images, labels = small_set()
    net = get_network("ConvNetW32", 3, 5, (8, 8))
    evaluate_synset(0, net, images, labels, Batches(images, labels, 16), published(), log=lambda line: None)
    assert modes == ["train"] * 7 + ["test"]
    data = load("CIFAR10", data_path)
    evaluator = Evaluator(data, settings(epoch_eval_train=2), Machine())
    evaluator(data.normalise(data.x_train[:20]), data.y_train[:20], 0, 5, lambda line: None)
    assert modes[8:] == (["train"] * 3 + ["test"]) * 2  # the second network begins in training mode again


def test_epoch_reports_exact_means_for_loaders_of_uneven_batches():
    images, labels = small_set()
    net = get_network("ConvNetW32", 3, 5, (8, 8))
    loader = torch.utils.data.DataLoader(TensorDataset(images, labels), batch_size=7)
    before = [p.clone() for p in net.parameters()]
    loss, acc = epoch("test", loader, net, None, nn.CrossEntropyLoss(), published(), aug=False)
    with torch.no_grad():
        logits = net(images)
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert acc == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_evaluations_follow_from_their_coordinates(data_path):
    data = load("CIFAR10", data_path)
    images, labels = data.normalise(data.x_train[:20]), data.y_train[:20]

    def accs(experiment=0, iteration=5, **change):
        evaluator = Evaluator(data, settings(epoch_eval_train=1, **change), Machine())
        return evaluator(images, labels, experiment, iteration, lambda line: None)

    first = accs()["ConvNetW32"]
    torch.manual_seed(99)  # the global generator plays no part
    assert accs()["ConvNetW32"] == first and len(first) == 2
    evaluator = Evaluator(data, settings(epoch_eval_train=1), Machine())  # it initialises one network afresh each time
    assert [evaluator(images, labels, 0, 5, lambda line: None)["ConvNetW32"] for _ in range(2)] == [first, first]
    assert accs(num_eval=1)["ConvNetW32"] == first[:1]
    assert accs(num_eval=4, iteration=6)["ConvNetW32"] != accs(num_eval=4)["ConvNetW32"]


def test_pools():
    assert get_eval_pool("SS", "ConvNetBN") == ["ConvNetBN"]
    assert get_eval_pool("S", "ConvNetBN") == ["ConvNet"]
    assert get_eval_pool("M", "ConvNet", "ConvNet") == ["MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"]
    assert get_eval_pool("B", "ConvNet") == ["ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"]
    assert get_eval_pool("W", "ConvNet") == ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"]
    assert get_eval_pool("D", "ConvNet") == ["ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"]
    assert get_eval_pool("A", "ConvNet") == ["ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"]
    assert get_eval_pool("P", "ConvNet") == ["ConvNetNP", "ConvNetMP", "ConvNetAP"]
    assert get_eval_pool("N", "ConvNet") == ["ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"]
    assert get_eval_pool("other", "ConvNet", "MLP") == ["MLP"]
    get_eval_pool("M", "ConvNet").clear()
    assert len(get_eval_pool("M", "ConvNet")) == 6


def test_summary():
    assert summary([0.4, 0.5]) == {"mean": 0.45, "std": pytest.approx(0.05), "n": 2, "accuracies": [0.4, 0.5]}
    assert describe([0.4, 0.5]) == "mean 45.00 %, std 5.00, n 2"


def test_the_protocol_line(data_path):
    data = load("CIFAR10", data_path)
    line = protocol.protocol(settings(epoch_eval_train=1000), Machine(), data)
    assert "1001 epochs" in line and "a tenth after epoch 501" in line and "all 30 test images" in line
    assert "a tenth" not in protocol.protocol(settings(epoch_eval_train=0), Machine(), data)


def test_networks_are_tested_on_all_test_images_normalised(tmp_path, monkeypatch):
    data, seen = load("Digits", tmp_path), []  # 360 test images: two batches
    monkeypatch.setattr(protocol, "test", lambda net, loader, machine: seen.extend(loader) or 0.5)
    own = ProtocolSettings(model="ConvNetW32", num_eval=1, epoch_eval_train=0)
    evaluator = Evaluator(data, own, Machine())
    evaluator(data.normalise(data.x_train[:20]), data.y_train[:20], 0, 0, lambda line: None)
    images, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(seen) == 2 and torch.equal(labels, data.y_test)
    assert torch.equal(images, data.normalise(data.x_test))
