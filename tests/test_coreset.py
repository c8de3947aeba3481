"""`ddm coreset`: every method, what it picks, its cache."""

import itertools
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import command, command_line, parsed

from ddm import device, rng
from ddm.augment import DiffAugment
from ddm.data.images import Normalisation
from ddm.data.loading import load
from ddm.device import Machine
from ddm.errors import UserError
from ddm.methods import cache, coreset
from ddm.methods.plan import images_per_class
from ddm.methods.sampling import real_images
from ddm.networks import ARCHITECTURES, ConvNet, empty_network, get_network, initialise

COMMON = ["--model", "ConvNetW32", "--ipc", "2", "--num_exp", "2", "--num_eval", "2", "--epoch_eval_train", "2"]
COMMON += ["--proxy_epochs", "2"]


def make(method, data_path, save_path, *argv):
    """Run the command in this process; its results.json and its sets."""
    line = [*COMMON, "--method", method, "--data_path", str(data_path), "--save_path", str(save_path), *argv]
    command("coreset", *line)
    results = json.loads((save_path / "results.json").read_text())
    ipc = 0 if method == "full" else 2
    return results, torch.load(save_path / f"res_{method}_CIFAR10_ConvNetW32_{ipc}ipc.pt")


def test_the_command(data_path, tmp_path):
    argv = ["--method", "herding", "--data_path", str(data_path), "--save_path", str(tmp_path / "out")]
    done = command_line("coreset", *COMMON, *argv)
    assert done.returncode == 0, done.stderr
    assert "herding,     ConvNetW32: mean" in done.stdout and done.stdout.splitlines()[-1].startswith("results")
    again = command_line("coreset", *COMMON, *argv)
    assert again.returncode == 0 and "is finished" in again.stdout


@pytest.mark.parametrize("method", coreset.methods())
def test_every_method_writes_real_images_of_the_right_class(method, data_path, tmp_path):
    results, saved = make(method, data_path, tmp_path)
    assert results["n"] == 4 and results["args"]["method"] == method
    assert [e["images"] for e in results["evaluations"]] == [method] * 2
    data = load("CIFAR10", data_path)
    for images, labels in saved["data"]:
        if method == "full":
            assert len(images) == len(labels) == 0
            continue
        assert labels.tolist() == [c for c in range(10) for _ in range(2)]
        for c in range(10):
            of_class = data.batch(data.indices[c]).flatten(1)
            own = images[labels == c].flatten(1)
            at = [(of_class == image).all(1).nonzero().flatten().tolist() for image in own]
            assert all(len(found) == 1 for found in at) and at[0] != at[1]


def test_random_is_what_recipes_call_random_real(data_path, tmp_path):
    _, saved = make("random", data_path, tmp_path)
    settings = parsed("coreset", *COMMON)
    data = load("CIFAR10", data_path)
    counts = images_per_class(data, settings.ipc)
    for experiment, (images, _) in enumerate(saved["data"]):
        assert torch.equal(images, real_images(data, counts, settings.seed, experiment))
    assert not torch.equal(saved["data"][0][0], saved["data"][1][0])


def test_a_finished_run_takes_more_networks(data_path, tmp_path):
    for method in ("kmeans", "full"):
        before, _ = make(method, data_path, tmp_path / method)
        after, _ = make(method, data_path, tmp_path / method, "--num_eval", "3")
        assert after["n"] == 6
        for old, new in zip(before["evaluations"], after["evaluations"], strict=True):
            assert new["accuracies"][:2] == old["accuracies"]
    assert "2 experiment(s) of all training images" in (tmp_path / "full" / "training.log").read_text()
    part, _ = make("full", data_path, tmp_path / "part", "--subset_size", "30")
    assert part["accuracies"] != before["accuracies"]


def test_what_cannot_work_is_refused(data_path, tmp_path, capsys):
    for argv, text in {
        "--method random --subset_size 5": "--subset_size is for",
        "--method full --subset_size 81": "has 80 training images",
        "--method herding --ipc 9": "lower --ipc to 8",
        "--method best": "unknown method 'best'",
        "--method herding --lr_net 1e30": "lower --lr_net",
        f"--method herding --network_cache {'x' * 300}": "--network_cache",
    }.items():
        save_path = tmp_path / "none"
        line = [*COMMON, "--data_path", str(data_path), "--save_path", str(save_path), *argv.split()]
        with pytest.raises(SystemExit) as stopped:
            command("coreset", *line)
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and text in err.splitlines()[-1] and not save_path.exists()
        assert err.count("error: ") == 1 and "Traceback" not in err


def test_the_proxy_is_cached_and_damage_is_reported(data_path, tmp_path):
    settings = parsed("coreset", *COMMON, "--proxy_cache", tmp_path / "cache")
    folder, data = cache.cache_folder(settings), load("CIFAR10", data_path)

    def proxy(data=data, **changes):
        return coreset.proxy(data, settings.but(**changes), Machine(), "herding")

    first, second = proxy(), proxy()
    assert torch.equal(first.embedding, second.embedding) and len(list(folder.glob("*.pt"))) == 1
    for name in coreset.ON_SCORES:
        assert torch.equal(first.scores[name], second.scores[name]) and first.scores[name].shape == (80,)
    proxy(replace(data, normalisation=Normalisation.of(data.mean, [0.25] * 3)))
    assert len(list(folder.glob("*.pt"))) == 2
    for path in folder.glob("*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="delete it"):
        proxy()
    torch.save({"net": coreset.empty_network(settings.model, 3, 10, (32, 32), "cpu").state_dict()}, path)
    torch.save({**torch.load(path), "forgetting": torch.zeros(7)}, path.with_name("short"))
    for content in (path.read_bytes(), path.with_name("short").read_bytes()):  # no scores, too few
        for own in list(folder.glob("*.pt")):
            own.write_bytes(content)
        with pytest.raises(UserError, match="delete it"):
            proxy()
    path.with_name("short").unlink()
    with pytest.raises(UserError, match="lower --lr_net"):  # another network, and none to look at
        proxy(lr_net=1e30)
    assert len(list(folder.glob("*.pt"))) == 2


# --- what the methods pick, on points where the answer is known ---------------------------------------------------


def test_embedding_methods_on_known_points():
    generator = torch.Generator().manual_seed(0)
    clusters = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = clusters.repeat_interleave(5, 0) + 0.1 * torch.randn(15, 2, generator=generator)
    for method in (coreset.kcenter, coreset.kmeans):
        picked = method(points, 3, torch.Generator().manual_seed(0))
        assert sorted((picked // 5).tolist()) == [0, 1, 2]
    picked = coreset.herding(points, 6, generator)
    assert len(set(picked.tolist())) == 6 and (points[picked].mean(0) - points.mean(0)).norm() < 0.5
    same = torch.ones(4, 3)  # duplicates: still different images
    for method in (coreset.kcenter, coreset.herding):
        assert len(set(method(same, 3, torch.Generator().manual_seed(0)).tolist())) == 3


def test_scores_keep_the_hardest_or_the_easiest(data_path):
    data = load("CIFAR10", data_path)
    scores = torch.arange(80.0)
    found = coreset.Proxy(torch.zeros(80, 1), {"el2n": scores})
    for order, wanted in {"hardest": [-1, -2], "easiest": [0, 1]}.items():
        picked = coreset.select(data, "el2n", (2,) * 10, 0, 0, found, order)
        for c, own in enumerate(data.indices):
            assert picked[2 * c : 2 * c + 2].tolist() == [own[i].item() for i in wanted]


def test_scores_of_a_known_network(data_path):
    """EL2N, GraNd and uncertainty against autograd, image by image."""
    data = load("CIFAR10", data_path)
    net = coreset.empty_network("ConvNetW32", 3, 10, (32, 32), "cpu")
    coreset.initialise(net, torch.Generator().manual_seed(0))
    found = coreset.observe(net, data, torch.zeros(80), "grand", 0.01)
    assert found.embedding is None
    for i in (0, 41):
        logits = net(data.batch(torch.tensor([i])))
        loss = torch.nn.functional.cross_entropy(logits, data.y_train[i : i + 1])
        gradients = torch.autograd.grad(loss, [net.classifier.weight, net.classifier.bias])
        norm = sum(g.square().sum() for g in gradients).sqrt()
        assert found.scores["grand"][i].item() == pytest.approx(norm.item(), rel=1e-4)
        error = logits.softmax(1)[0] - torch.eye(10)[data.y_train[i]]
        assert found.scores["el2n"][i].item() == pytest.approx(error.norm().item(), rel=1e-4)
        assert found.scores["uncertainty"][i].item() == pytest.approx(1 - logits.softmax(1).max().item(), rel=1e-4)


def test_networks_of_one_name_share_no_proxy(data_path, tmp_path, monkeypatch):
    settings = parsed("coreset", *COMMON, "--network_cache", tmp_path / "cache")
    folder, data = cache.cache_folder(settings), load("CIFAR10", data_path)
    for act in ("relu", "sigmoid"):
        build = partial(ConvNet, net_width=32, net_act=act)
        monkeypatch.setitem(
            ARCHITECTURES, settings.model, lambda c, n, im_size, build=build: build(c, n, im_size=im_size)
        )
        coreset.proxy(data, settings, Machine(), "herding")
    assert len(list(folder.glob("proxy_*.pt"))) == 2


def test_an_order_that_is_not_read_is_warned_of(data_path, tmp_path, capsys):
    make("herding", data_path, tmp_path, "--order", "easiest")
    assert "warning: --order easiest has no effect with --method herding" in capsys.readouterr().err


def test_large_data_train_one_proxy_for_all_ipc(data_path, monkeypatch):
    data, plans = load("CIFAR10", data_path), []
    monkeypatch.setattr(device, "REPAYS", {"cpu": 3 * 4 * len(data.x_train) * 32 * 32})
    for ipc in (1, 5):
        settings = parsed(
            "coreset", *COMMON, "--method", "herding", "--ipc", ipc, "--epoch_eval_train", "0", "--proxy_epochs", "4"
        )
        plans.append(coreset.coreset_plan(settings.but(device="cpu"), data))
    assert plans[0].machine == plans[1].machine and plans[0].machine.compile == "on"


def test_forgetting_equals_a_plain_loop(data_path):
    data = load("CIFAR10", data_path)
    settings = parsed("coreset", *COMMON, "--proxy_epochs", "8", "--lr_net", "0.05")
    net = empty_network("ConvNetW32", 3, 10, (32, 32), "cpu")
    found = coreset.train_proxy(net, data, settings, Machine())
    plain = initialise(get_network("ConvNetW32", 3, 10), rng.generator(0, 0, 0, -1, "proxy network"))
    generator = rng.generator(0, 0, 0, -1, "proxy training")
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    history = []
    for _ in range(8):
        rows = torch.randperm(80, generator=generator)
        out = plain(DiffAugment(data.batch(rows), settings.dsa_strategy, generator=generator))
        optimizer.zero_grad()
        F.cross_entropy(out, data.y_train[rows]).backward()
        optimizer.step()
        right = torch.zeros(80, dtype=torch.bool)
        right[rows] = out.argmax(1) == data.y_train[rows]
        history.append(right.tolist())
    each = zip(*history, strict=True)
    expected = [sum(a and not b for a, b in itertools.pairwise(x)) if any(x) else 9 for x in each]
    assert found.tolist() == expected and {0, 1, 2, 9} <= set(expected)
    torch.testing.assert_close(net.classifier.weight, plain.classifier.weight, rtol=1e-3, atol=1e-5)


def test_k_center_starts_at_the_mean():
    points = torch.tensor([[0.0], [1.0], [4.0], [8.5], [10.0]])  # mean 4.7
    assert coreset.kcenter(points, 4, torch.Generator()).tolist() == [2, 4, 0, 3]
