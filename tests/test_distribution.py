"""--networks: the networks under which images are matched, fresh ones or points in the training of a pool."""

import dataclasses
import inspect
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import QUICK, ROOT, maker, parse, run
from torch.nn import functional as F

from ddm import rng
from ddm.augment import DiffAugment
from ddm.data.loading import load
from ddm.errors import UserError
from ddm.methods import cache, distribution, online, pool
from ddm.methods.condensation import Condensation
from ddm.methods.step import gradients
from ddm.networks import ARCHITECTURES, ConvNet, Network, assign, flat, get_network, initialise
from ddm.ranks import Ranks

POOL = ("--networks", "trained", "--pool", "3", "--pool_epochs", "2", "--preset", "dm")
NUMBER = list(inspect.signature(pool.train).parameters).index("number")  # of the arguments of pool.train


def built(data_path, cache_path, *argv, remaining=1):
    """A maker with a trained pool of narrow networks."""
    settings = parse("DM_DDM", *QUICK, "--model", "ConvNetW32", *POOL, "--network_cache", cache_path, *argv)
    made = maker("DM_DDM", settings, load("CIFAR10", data_path))
    made.prepare(remaining)
    return made


def files(cache_path):
    return sorted(cache_path.rglob("*.pt"))


def test_a_network_is_trained_as_described(data_path, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "BATCH", 32)  # 80 images: batches of 32, 32 and 16
    made = built(data_path, tmp_path)
    data, net = made.data, get_network("ConvNetW32", 3, 10)
    initialise(net, rng.generator(0, 0, 1, -1, "pool network"))
    generator = rng.generator(0, 0, 1, -1, "pool training")
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True)
    done, points = 0, [flat(net).half()]
    for _ in range(2):
        for rows in torch.randperm(80, generator=generator).split(32):
            optimizer.param_groups[0]["lr"] = 0.05 * min((done + 1) / (0.2 * 6), 1, (1 - done / 6) / 0.8)
            x = DiffAugment(data.normalise(data.x_train[rows]), made.plan.settings.dsa_strategy, generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(net(x), data.y_train[rows]).backward()
            optimizer.step()
            done += 1
            points.append(flat(net).half())
    # Of 6 steps, those nearest to k/8 of the training; round() takes the even one of two.
    expected = [points[k] for k in sorted({round(6 * k / 8) for k in range(9)})]
    found = made.networks.points[1]
    assert len(found) == 9
    torch.testing.assert_close(found[: len(expected)], torch.stack(expected), rtol=0, atol=1e-3)
    assert torch.equal(found[len(expected) :], expected[-1].expand(9 - len(expected), -1))


def test_a_step_takes_a_point_between_two_snapshots(data_path, tmp_path):
    made = built(data_path, tmp_path)
    points = made.networks.points.float()
    drawn, seen = [], set()
    for iteration in range(1, 40):
        found = made.networks.draw(0, iteration)["network"]
        generator = rng.generator(0, 0, iteration, -1, "network")
        number, at = int(torch.randint(3, (1,), generator=generator)), float(torch.rand(1, generator=generator)) * 8
        k = int(at)
        expected = (1 - at + k) * points[number, k] + (at - k) * points[number, k + 1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        seen.add(number)
    assert seen == {0, 1, 2}
    for seed in range(40):
        found = distribution.mixed(made.networks, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        fresh = bool(torch.rand(1, generator=generator) < 0.5)
        if fresh:
            expected = flat(initialise(get_network("ConvNetW32", 3, 10), generator))
        else:
            expected = distribution.trained(made.networks, generator)
        assert torch.equal(found, expected)
        drawn.append(fresh)
    assert 10 < sum(drawn) < 30
    made.networks.settings = made.plan.settings.but(interpolate=False)
    taken = set()
    for seed in range(200):
        found = distribution.trained(made.networks, torch.Generator().manual_seed(seed))
        same = [(n, p) for n in range(len(points)) for p in range(9) if torch.equal(found, points[n, p].float())]
        assert same
        taken |= set(same)
    assert {p for _, p in taken} == set(range(9))  # from its initialisation to its end


def test_runs_share_a_pool_and_a_larger_one_extends_it(data_path, tmp_path, monkeypatch):
    first = built(data_path, tmp_path).networks.points
    made = files(tmp_path)
    assert len(made) == 3

    def never(*args):
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "train", never)
        assert torch.equal(built(data_path, tmp_path, "--ipc", "1", "--rr_ratio", "1").networks.points, first)
        finished = built(data_path, tmp_path / "other", remaining=0)  # only evaluations are left
        assert not hasattr(finished, "networks") and len(finished.labels)
    larger = built(data_path, tmp_path, "--pool", "4").networks.points
    assert torch.equal(larger[:3], first) and len(files(tmp_path)) == 4
    for other in (("--pool_epochs", "1"), ("--pool_lr", "0.1"), ("--seed", "1"), ("--eval_split", "val")):
        before = len(files(tmp_path))
        built(data_path, tmp_path, "--pool", "1", *other)
        assert len(files(tmp_path)) == before + 1, other


def test_a_pool_is_resumed_network_by_network(data_path, tmp_path, monkeypatch):
    whole = built(data_path, tmp_path / "whole").networks.points
    train = pool.train

    def killed(*arguments):
        if arguments[NUMBER] == 2:
            raise KeyboardInterrupt
        return train(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pool, "train", killed)
        built(data_path, tmp_path / "part")
    assert len(files(tmp_path / "part")) == 2
    assert torch.equal(built(data_path, tmp_path / "part").networks.points, whole)


def test_networks_of_a_pool_are_trained_together(data_path, tmp_path, monkeypatch):
    """On an accelerator; networks that were trained together may extend those trained alone."""
    monkeypatch.setattr(pool, "BATCH", 32)
    single, real = built(data_path, tmp_path / "single").networks.points, pool.trained_together
    sizes = []

    def together(blank, data, settings, machine, numbers):
        sizes.append(len(numbers))
        if len(numbers) == 3:
            raise torch.OutOfMemoryError
        return real(blank, data, settings, machine, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(pool.stacked, "stacks", lambda where: True)
        patch.setattr(pool, "trained_together", together)
        found = built(data_path, tmp_path / "together").networks.points
        assert sizes == [3]  # then one by one
        assert torch.equal(found, single)
        built(data_path, tmp_path / "more", "--pool", "1")
        found = built(data_path, tmp_path / "more").networks.points
        assert sizes == [3, 2] and len(files(tmp_path / "more")) == 3
    torch.testing.assert_close(found, single, rtol=0, atol=1e-3)


NOTE = """
from ddm.methods import pool

real = pool.train


def train(*arguments):
    with open({path!r}, "a") as file:
        file.write(f"{{arguments[{number}]}}\\n")
    return real(*arguments)


pool.train = train
"""


class SecondOfTwo(Ranks):
    """A rank that looks for the files of a pool after the first rank has stored some."""

    def from_first(self, value):
        return [0, 1, 2]

    def gather(self, value):
        return [self.of_the_first, value]


def test_a_rank_that_looks_late_trains_its_own_networks(data_path, tmp_path, monkeypatch):
    whole, trained = built(data_path, tmp_path), []
    files(tmp_path)[1].unlink()  # the network of the second rank
    files(tmp_path)[1].unlink()  # the first rank stores this one later
    group = SecondOfTwo(1, 2)
    group.of_the_first = {number: whole.networks.points[number] for number in (0, 2)}
    real = pool.train
    monkeypatch.setattr(pool, "train", lambda *a: trained.append(a[NUMBER]) or real(*a))
    points = pool.trained_pool(whole.data, dataclasses.replace(whole.plan, ranks=group))
    assert trained == [1] and torch.equal(points, whole.networks.points)


def test_two_processes_share_the_training(data_path, tmp_path):
    line = [sys.executable, "-m", "ddm", "condense", *QUICK, "--model", "ConvNetW32", *POOL, "--pool", "6"]
    line += ["--data_path", str(data_path), "--network_cache", str(tmp_path / "cache"), "--eval_every", "0"]
    (tmp_path / "note.py").write_text(NOTE.format(path=str(tmp_path / "trained"), number=NUMBER))
    line += ["--import", str(tmp_path / "note.py")]
    both = [
        subprocess.Popen([*line, "--save_path", str(tmp_path / k)], cwd=ROOT, stdout=subprocess.DEVNULL) for k in "ab"
    ]
    assert [process.wait(200) for process in both] == [0, 0]
    a, b = (torch.load(next((tmp_path / k).glob("res_*.pt")))["data"][0][0] for k in "ab")
    assert torch.equal(a, b) and len(files(tmp_path / "cache")) == 6
    assert sorted((tmp_path / "trained").read_text().split()) == list("012345")  # each by one of the two


def test_a_file_that_another_process_makes_is_not_claimed(tmp_path):
    with (
        cache.claimed(tmp_path / "folder" / "network.pt") as mine,
        cache.claimed(tmp_path / "folder" / "network.pt") as other,
    ):
        assert mine and not other
    with cache.claimed(tmp_path / "folder" / "network.pt") as again:
        assert again


def test_a_process_that_waits_for_another_says_so(tmp_path, monkeypatch, capsys):
    path, seconds = tmp_path / "network.pt", []

    def sleep(passed):
        seconds.append(passed)
        if len(seconds) == 12:
            cache.store(path, [1.0])

    monkeypatch.setattr(cache.time, "sleep", sleep)
    with cache.claimed(path):
        assert dict(cache.made_by_all({0: path}, None, 1)) == {0: [1.0]}
    err = capsys.readouterr().err
    assert err.count("note: waiting") == 1 and str(path.with_suffix(".lock")) in err


def test_a_layer_of_the_user_is_known_by_its_code():
    class Scaled(torch.nn.Module):
        def forward(self, x):
            return x * 2.0

    def key():
        return cache.architecture(Network([Scaled(), torch.nn.Flatten()], 4, 3))

    first = key()
    assert key() == first
    Scaled.forward = lambda self, x: x * 3.0
    assert key() != first
    assert len(cache.architecture(get_network("ConvNet", 3, 10, (32, 32)))) == 2  # built in: layers and shapes alone


def test_damage_and_divergence_are_one_line(data_path, tmp_path):
    built(data_path, tmp_path)
    files(tmp_path)[1].write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"is damaged .*: delete it"):
        built(data_path, tmp_path)
    torch.save(torch.zeros(2, 3), files(tmp_path)[1])
    with pytest.raises(UserError, match=r"is damaged .*: delete it"):
        built(data_path, tmp_path)
    with pytest.raises(UserError, match="diverged: lower --pool_lr"):
        built(data_path, tmp_path, "--pool_lr", "1e30")


@pytest.mark.parametrize("networks", ["random", "trained"])
@pytest.mark.parametrize("weights", ["absolute", "balanced"])
@pytest.mark.parametrize("chunk", ["10", "2"])
def test_cross_entropy_under_a_finished_network(networks, weights, chunk, data_path, tmp_path):
    argv = (
        "--ce_ratio",
        "0.5",
        "--weights",
        weights,
        "--networks",
        networks,
        "--class_chunk",
        chunk,
        "--dsa_strategy",
        "none",
    )
    made = built(data_path, tmp_path, *argv)
    made.start(0, None)
    images = made.images().detach().clone().requires_grad_()
    drawn = made.draws.draw(0, 1)
    terms, gradient, chunks = gradients(made.matcher, images, made.draws, drawn, made.plan)
    # By hand: the same two networks, the gradients of both terms at the pixels.
    generator = rng.generator(0, 0, 1, -1, "finished network")
    number, judge = int(torch.randint(3, (1,), generator=generator)), get_network("ConvNetW32", 3, 10)
    assign(judge.requires_grad_(False), made.networks.points[number, -1])
    real = made.data.batch(drawn["real"])
    means = [
        made.matcher.net.embed(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)
        for x in (real, images.view(10, 2, 3, 32, 32))
    ]
    mmd = (means[0] - means[1]).square().sum(1)
    ce = F.cross_entropy(judge(images), torch.arange(10).repeat_interleave(2), reduction="none").view(10, 2).mean(1)
    a, b = (torch.autograd.grad(loss.sum(), images)[0] for loss in (mmd, ce))
    expected = a + 0.5 * b
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
    assert len(terms) == len(chunks)
    value = sum(part["L_CE"] for part in terms)
    torch.testing.assert_close(value, 0.5 * ce.sum().detach(), rtol=1e-4, atol=1e-6)


ONLINE = ("--networks", "online", "--pool", "2", "--preset", "dm", "--lr_img", "0.1", "--Iteration", "6")


def test_an_online_network_takes_a_step_on_the_set_after_its_use(data_path, monkeypatch):
    monkeypatch.setattr(online, "ONLINE_STEPS", 2)
    made = maker("DM_DDM", parse("DM_DDM", *QUICK, "--model", "ConvNetW32", *ONLINE), load("CIFAR10", data_path))
    made.prepare()
    made.start(0, None)
    nets = [get_network("ConvNetW32", 3, 10) for _ in range(2)]
    for number, net in enumerate(nets):
        initialise(net, rng.generator(0, 0, 0, number, "online network"))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4) for net in nets]
    labels, ages = torch.arange(10).repeat_interleave(2), [0, 0]
    for iteration in range(1, 7):
        made.step(iteration)
        number = int(torch.randint(2, (1,), generator=rng.generator(0, 0, iteration, -1, "network")))
        used = torch.cat([p.detach().flatten() for p in nets[number].parameters()])
        found = torch.cat([p.detach().flatten() for p in made.matcher.net.parameters()])
        torch.testing.assert_close(found, used, rtol=1e-4, atol=1e-6)
        generator = rng.generator(0, 0, iteration, -1, "online training")
        rows = torch.randperm(20, generator=generator)
        x = DiffAugment(made.images().detach()[rows], made.plan.settings.dsa_strategy, generator=generator)
        optimizers[number].zero_grad()
        F.cross_entropy(nets[number](x), labels[rows]).backward()
        optimizers[number].step()
        ages[number] += 1
        if ages[number] == 2:
            initialise(nets[number], rng.generator(0, 0, iteration, number, "online network"))
            optimizers[number].state.clear()
            ages[number] = 0
    state = made.state()[2]
    assert state.shape == (2, 2 * len(used) + 1) and state[:, -1].tolist() == ages


@pytest.mark.parametrize("argv", [(*POOL, "--lr_img", "0.1", "--Iteration", "6"), ONLINE], ids=["trained", "online"])
def test_a_run_resumes_under_the_same_networks(argv, data_path, tmp_path, monkeypatch):
    argv = (*argv, "--network_cache", str(tmp_path / "cache"), "--checkpoint_every", "2", "--eval_every", "0")
    whole, results = run("DM_DDM", data_path, tmp_path / "whole", *argv)
    step = Condensation.step

    def killed(self, iteration):
        if iteration == 4:
            raise KeyboardInterrupt
        step(self, iteration)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Condensation, "step", killed)
        run("DM_DDM", data_path, tmp_path / "part", *argv)
    again, _ = run("DM_DDM", data_path, tmp_path / "part", *argv)
    assert torch.equal(again["data"][0][0], whole["data"][0][0])
    fresh, _ = run("DM_DDM", data_path, tmp_path / "fresh", *argv, "--networks", "random")
    assert not torch.equal(fresh["data"][0][0], whole["data"][0][0])
    assert results["args"]["networks"] == argv[1]


@pytest.mark.parametrize("on_nonfinite", ["skip", "stop"])
def test_online_networks_that_diverge_are_named(on_nonfinite, data_path, tmp_path):
    with pytest.raises(UserError, match=r"the online networks diverged: lower --lr_net 1e\+20"):
        run("DM_DDM", data_path, tmp_path, *ONLINE, "--lr_net", "1e20", "--on_nonfinite", on_nonfinite)


def test_networks_of_one_name_do_not_share_a_pool(data_path, tmp_path, monkeypatch):
    for number, (width, act) in enumerate(((32, "relu"), (32, "sigmoid"), (64, "relu"))):
        build = partial(ConvNet, net_width=width, net_act=act)
        monkeypatch.setitem(ARCHITECTURES, "mine", lambda c, n, im_size, build=build: build(c, n, im_size=im_size))
        built(data_path, tmp_path, "--model", "mine", "--pool", "1")
        assert len(files(tmp_path)) == number + 1


def test_a_cache_that_is_a_file_is_refused_before_the_training(data_path, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        built(data_path, tmp_path / "cache")


def test_a_cache_of_another_shape_is_refused(data_path, tmp_path):
    built(data_path, tmp_path)
    kept = torch.load(files(tmp_path)[0])
    for content in (torch.zeros(9, 5), torch.full_like(kept, torch.nan), kept.float(), kept.to_sparse(), {"a": 1}):
        for path in files(tmp_path):
            torch.save(content, path)
        with pytest.raises(UserError, match="does not fit ConvNetW32"):
            built(data_path, tmp_path)
