"""The fast path gives the plain path's results; what chooses it, and what it falls back to."""

from functools import partial

import pytest
import torch
from conftest import QUICK, RECIPES, maker, parse

from ddm import device
from ddm.data import loading
from ddm.errors import UserError
from ddm.evaluation.protocol import Evaluator
from ddm.losses import correlation_matching, mean_matching, moments_matching, readout_matching
from ddm.methods.plan import choose_chunk, condensing_pixels
from ddm.networks import empty_network
from ddm.settings import MachineSettings

needs_compiler = pytest.mark.skipif(
    device.compiler_problem("cpu") is not None, reason="torch.compile finds no compiler here"
)


def steps(recipe, data_path, *argv):
    """Three steps of a recipe: the losses of each, the images after the last."""
    model = RECIPES[recipe].replace("ConvNet", "ConvNetD2")  # two layers: compiled in half the time of three
    settings = parse(recipe, *QUICK, "--ipc", "3", "--lr_img", "0.1", "--model", model, "--data_path", data_path, *argv)
    made = maker(recipe, settings, loading.load(settings.dataset, settings.data_path))
    made.prepare()
    made.start(0, None)
    losses, start = [], made.images().clone()
    for it in (1, 2, 3):
        made.step(it)
        losses.append(made.pending[-1][1].terms.sum(1))
    return torch.stack(losses), made.images(), start


@needs_compiler
def test_the_compiled_readout_equals_the_plain_one_without_a_warning(recwarn):
    generator = torch.Generator().manual_seed(0)
    real, syn = (torch.randn(3, n, 16, generator=generator) for n in (8, 5))
    compiled = torch.compile(readout_matching)(real, syn, 0.1)
    torch.testing.assert_close(compiled, readout_matching(real, syn, 0.1))
    assert [str(warning.message) for warning in recwarn] == []


@needs_compiler
@pytest.mark.parametrize("recipe", ["DM_GramMatching"])
def test_the_compiled_step_equals_the_plain_one(recipe, data_path):
    plain, images, start = steps(recipe, data_path, "--compile", "off")
    same, again = (steps(recipe, data_path, "--compile", "on", "--precision", "fp32") for _ in range(2))
    torch.testing.assert_close(same[0], plain, rtol=1e-3, atol=1e-6)
    assert (same[1] - images).norm() < 0.01 * (images - start).norm()
    assert torch.equal(same[1], again[1])


@needs_compiler
def test_the_bfloat16_step_is_near_the_plain_one(data_path):
    narrow = ("--model", "ConvNetW32_gram")  # where bfloat16 is emulated, it takes its time
    plain, images, start = steps("DM_GramMatching", data_path, *narrow, "--compile", "off")
    compile = "on" if device.fast_bf16("cpu") else "off"  # as it would be used
    rough, images_rough, _ = steps("DM_GramMatching", data_path, *narrow, "--compile", compile, "--precision", "bf16")
    torch.testing.assert_close(rough.sum(1), plain.sum(1), rtol=0.01, atol=1e-4)
    assert (images_rough - images).norm() < 0.2 * (images - start).norm()
    assert not torch.equal(images_rough, images)


@needs_compiler
def test_the_compiled_evaluation_learns_as_the_plain_one(data_path):
    settings = parse("DM_KNearest", *QUICK, "--model", "ConvNetD1", "--epoch_eval_train", "15", "--batch_train", "16")
    data = loading.load("CIFAR10", data_path)
    images, labels = data.normalise(data.x_train), data.y_train
    accs = []
    for compile in ("off", "on"):
        machine = device.choose(settings.but(compile=compile), "cpu", 0)  # what this machine is fast with
        assert machine.compile == compile
        evaluator = Evaluator(data, settings, machine)
        accs.append(torch.tensor(evaluator(images, labels, 0, 0, lambda line: None)["ConvNetD1"]))
    plain, fast = accs
    assert plain.min() > 0.3
    assert (fast - plain).abs().max() < (0.11 if machine.precision == "fp32" else 0.21)


def test_bfloat16_maps_give_the_losses_of_float32_ones():
    generator = torch.Generator().manual_seed(0)
    real, syn = (torch.rand(2, n, 8, 9, 9, generator=generator).relu() for n in (64, 5))
    for term in (moments_matching, correlation_matching, partial(moments_matching, stats="image", relative=True)):
        exact, rounded = term([real], [syn]).sum(), term([real.bfloat16()], [syn.bfloat16()]).sum()
        assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact.item(), rel=0.02)
    exact, rounded = (
        mean_matching(real.to(t).flatten(2), syn.to(t).flatten(2)).sum() for t in (torch.float32, torch.bfloat16)
    )
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)


def chosen(pixels, **settings):
    machine = device.choose(MachineSettings(**settings), "cpu", pixels)
    assert machine.device == "cpu"
    return machine.compile, machine.precision


def test_slow_bf16_is_computed_with_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(device, "fast_bf16", lambda kind: True)
    assert chosen(1, precision="bf16") == ("off", "bf16") and not capsys.readouterr().err
    monkeypatch.setattr(device, "fast_bf16", lambda kind: False)
    assert chosen(1, precision="bf16") == ("off", "bf16")
    assert capsys.readouterr().err == "warning: this cpu emulates bf16, many times slower than --precision fp32\n"


@pytest.mark.parametrize(
    ("before", "fast", "tf32", "now"),
    [
        ("bf16", True, False, "bf16"),
        ("bf16", False, True, "tf32"),
        ("bf16", False, False, "fp32"),
        ("tf32", True, False, "fp32"),
        ("tf32", False, True, "tf32"),
        ("fp32", True, True, "fp32"),
        (None, True, True, None),
    ],
)
def test_a_recorded_precision_is_repeated_where_it_is_fast(before, fast, tf32, now, monkeypatch, capsys):
    monkeypatch.setattr(device, "fast_bf16", lambda kind: fast)
    monkeypatch.setattr(device, "has_tf32", lambda kind: tf32)
    assert device.repeated(before, "cuda:1") == now
    warning = f"this cuda has no fast {before}, in which the set was made: using {now}, which rounds differently"
    assert capsys.readouterr().err == ("" if now == before else f"warning: {warning}\n")


def test_auto_compiles_long_runs_only(monkeypatch):
    monkeypatch.setattr(device, "compiler_problem", lambda device: None)
    monkeypatch.setattr(device, "fast_bf16", lambda kind: True)
    assert chosen(10**6) == ("off", "fp32")
    assert chosen(10**10) == ("on", "bf16")
    assert chosen(1, compile="on") == ("on", "bf16")
    assert chosen(10**12, compile="off") == ("off", "fp32")
    assert chosen(10**10, precision="fp32") == ("on", "fp32")
    monkeypatch.setattr(device, "fast_bf16", lambda kind: False)
    assert chosen(10**10) == ("on", "fp32")


def test_without_a_compiler_auto_warns_once_and_on_is_refused(monkeypatch, capsys):
    def broken(function, **options):
        raise RuntimeError("no C++ compiler\nmore about it")

    monkeypatch.setattr(torch, "compile", broken)
    assert chosen(10**10) == ("off", "fp32")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no C++ compiler" in err
    with pytest.raises(UserError, match="--compile on"):
        chosen(1, compile="on")


def test_the_chunk_divides_the_classes_and_follows_free_memory(data_path, monkeypatch):
    settings = parse("DM_GramMatching", *QUICK, "--data_path", data_path)
    data = loading.load("CIFAR10", data_path)
    assert choose_chunk(settings, data, 10 * [16]) == 2  # 2**16 pixels would hold 4, which does not divide 10
    assert choose_chunk(settings, data, 10 * [2]) == 10
    monkeypatch.setattr(device, "free_memory", lambda device: 2**24)
    assert choose_chunk(settings, data, 10 * [2]) == 1


def test_a_classs_memory_grows_with_its_images():
    net = empty_network("ConvNet_gram", 3, 10, (32, 32), "meta")
    one, more_real, more_syn = (device.class_bytes(net, (3, 32, 32), *n) for n in ((8, 1), (16, 1), (8, 10)))
    kept = 4 * 128 * (32 * 32 * 3 + 16 * 16 * 3 + 8 * 8 * 3)  # a block's convolution, norm and activation
    assert more_real - one > 8 * 4 * 3 * 32 * 32 and more_syn - one > 9 * kept


def test_the_choice_follows_from_one_experiments_condensing(data_path):
    sizes = set()
    for argv in (("--num_exp", "1"), ("--num_exp", "5"), ("--num_eval", "50"), ("--eval_every", "0")):
        settings = parse("DM_KNearest", *QUICK, "--data_path", data_path, *argv)
        sizes.add(condensing_pixels(settings, loading.load("CIFAR10", data_path), 10 * [2], pool=False))
    assert sizes == {3 * 10 * (6 + 3 * 2) * 1024}
