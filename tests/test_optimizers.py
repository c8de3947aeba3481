"""Optimizers of the pixels: their steps by formula, and that a resumed experiment ends with the same images."""

from functools import partial

import pytest
import torch
from conftest import QUICK, maker, parse, run

from ddm.data.loading import load
from ddm.errors import UserError
from ddm.methods import step
from ddm.methods.optimizers import OPTIMIZERS


def started(data_path, *flags):
    line = [*QUICK, "--model", "ConvNetW32", "--compile", "off", *flags]
    made = maker("DM_DDM", parse("DM_DDM", *line), load("CIFAR10", data_path))
    made.prepare()
    made.start(0, None)
    return made


def test_the_first_steps_by_formula(data_path):
    made = started(data_path, "--optimizer", "adam", "--lr_img", "0.03")
    before = made.images().detach().clone()
    made.step(1)
    moved = (made.images() - before).abs()
    assert (moved - 0.03).abs().quantile(0.9) < 1e-3 and moved.max() <= 0.03 + 1e-6  # lr * sign of the gradient
    made = started(data_path, "--optimizer", "normalised", "--lr_img", "0.03")
    made.step(1)
    rms = (made.images() - before).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 0.03))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_experiment_ends_with_the_same_images(name, data_path):
    flags = ("--optimizer", name, "--lr_img", "0.05", "--Iteration", "5")
    whole, half = started(data_path, *flags), started(data_path, *flags)
    for iteration in range(1, 6):
        whole.step(iteration)
    for iteration in range(1, 4):
        half.step(iteration)
    resumed = started(data_path, *flags)
    resumed.start(0, half.state())
    for iteration in (4, 5):
        resumed.step(iteration)
    assert torch.equal(whole.images(), resumed.images())
    assert all(torch.equal(a, b) for a, b in zip(whole.state()[:2], resumed.state()[:2], strict=True))


@pytest.mark.parametrize("name", ["adam", "normalised"])
def test_the_scale_of_the_losses_does_not_matter(name, data_path):
    images = []
    for weight in ("1", "1000"):
        made = started(data_path, "--preset", "dm", "--mmd_ratio", weight, "--optimizer", name, "--lr_img", "0.05")
        for iteration in (1, 2, 3):
            made.step(iteration)
        images.append(made.images().detach())
    assert (images[0] - images[1]).abs().mean() < 1e-3 and images[0].isfinite().all()


def test_the_command_resumes_and_another_optimizer_is_refused(data_path, tmp_path):
    line = (
        "--optimizer",
        "adam",
        "--lr_img",
        "0.05",
        "--eval_every",
        "0",
        "--num_eval",
        "1",
        "--epoch_eval_train",
        "0",
    )
    saved, record = run("DM_KNearest", data_path, tmp_path, *line)
    assert saved["args"]["optimizer"] == record["args"]["optimizer"] == "adam"
    run("DM_KNearest", data_path, tmp_path, *line, "--num_exp", "2")
    with pytest.raises(UserError, match="optimizer"):
        run("DM_KNearest", data_path, tmp_path, *line, "--optimizer", "sgd", "--num_exp", "2")


def test_an_unset_lr_img_follows_the_optimizer():
    assert parse("DM_DDM", "--preset", "fast", "--ipc", "4").optimizer == "normalised"
    for name, lr in (("sgd", 2.0), ("adam", 0.1), ("normalised", 0.03)):
        assert parse("DM_DDM", "--preset", "fast", "--ipc", "4", "--optimizer", name).lr_img == lr


def test_memory_that_runs_out_between_the_copies_of_a_step_changes_nothing(data_path, monkeypatch):
    def images(fails):
        made, calls = started(data_path, "--preset", "dm"), []

        def where(*args):
            calls.append(args)
            if len(calls) == fails:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return torch_where(*args)

        torch_where = torch.where
        with monkeypatch.context() as patch:
            patch.setattr(step.torch, "where", where)
            made.step(1)
        made.check()
        return made.images().clone()

    assert all(torch.equal(images(0), images(fails)) for fails in (1, 2))


def test_moments_that_overflow_stop_the_run(data_path, tmp_path):
    argv = ("--preset", "dm", "--optimizer", "adam", "--lr_img", "0.1", "--mmd_ratio", "1e25", "--num_exp", "1")
    with pytest.raises(UserError, match="an updated pixel or moment is not finite"):
        run("DM_DDM", data_path, tmp_path, *argv)


def test_steps_equal_those_of_torch():
    generator, settings = torch.Generator().manual_seed(0), parse("DM_DDM")
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.5)
    for name, theirs in {"sgd": sgd, "normalised": sgd, "adam": partial(torch.optim.Adam, lr=0.1)}.items():
        x = torch.randn(2, 3, 4, 4, generator=generator)
        expected, buffers = x.clone().requires_grad_(), OPTIMIZERS[name].empty(x)
        optimizer = theirs([expected])
        for done in range(4):
            gradient = torch.randn(x.shape, generator=generator)
            rms = gradient.square().mean((1, 2, 3), keepdim=True).sqrt() if name == "normalised" else 1
            expected.grad = gradient / rms
            optimizer.step()
            rate, count = torch.tensor(0.1), torch.tensor(float(done))
            x, buffers = OPTIMIZERS[name].update(x, gradient, buffers, rate, count, settings)
        torch.testing.assert_close(x, expected.detach(), msg=name)
