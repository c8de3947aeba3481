"""Tests that need a GPU: `pytest -m cuda`. Skipped without one; benchmarks/gpu.py runs them."""

import pytest
import torch
from conftest import QUICK, maker, parse

from ddm.augment import Siamese
from ddm.data.loading import load
from ddm.device import Machine
from ddm.evaluation.protocol import Evaluator, TrainingSet
from ddm.evaluation.settings import ProtocolSettings
from ddm.methods.graphs import WARM_UP

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CASES = {
    "paper": ("--preset", "paper", "--lr_img", "0.001"),
    "best": ("--preset", "fast,best"),
    "balanced": ("--preset", "fast,best", "--real_sampling", "balanced"),
    "strong": ("--preset", "fast,strong", "--pool", "2", "--pool_epochs", "1"),
    "online": ("--preset", "fast,best", "--networks", "online", "--pool", "2"),
    "adam": ("--preset", "dm", "--optimizer", "adam", "--lr_img", "0.1", "--lr_schedule", "cosine"),
    "batchnorm": ("--preset", "dm", "--model", "ConvNetBN", "--lr_img", "0.1"),
}


def started(data_path, tmp_path, *flags):
    line = [
        *QUICK,
        "--real_sampling",
        "random",
        "--batch_real",
        "3",
        "--model",
        "ConvNetW32",
        "--data_path",
        data_path,
        "--network_cache",
        tmp_path,
        "--device",
        "cuda",
    ]
    settings = parse("DM_DDM", *line, "--Iteration", "9", "--compile", "off", "--precision", "fp32", *flags)
    made = maker("DM_DDM", settings, load("CIFAR10", data_path))
    made.prepare()
    made.start(0, None)
    return made


def assert_alike(images, expected, first, share=0.02):
    """Two results differ by less than a share of the way from the first images.

    Not pixel by pixel: gradients of `scale` and `rotate` are summed in no fixed order. ReLU, the normalised step and
    networks that train on the images amplify rounding. A replay with an old network is off by a fifth or more.
    """
    assert (images - expected).norm() < share * (expected - first).norm()


def after(made, iterations=9):
    for iteration in range(1, iterations + 1):
        made.step(iteration)
    return made.images().cpu(), [report.terms for report in made.check()]


@pytest.mark.parametrize("case", CASES)
def test_a_graph_equals_eager_steps(case, data_path, tmp_path):
    graphed, eager = (started(data_path, tmp_path, *CASES[case], "--graphs", graphs) for graphs in ("auto", "off"))
    first = eager.images().cpu()
    (images, terms), (expected, expected_terms) = after(graphed), after(eager)
    assert graphed.replayed and not eager.replayed
    assert_alike(images, expected, first)
    for own, other in zip(terms, expected_terms, strict=True):
        assert own == pytest.approx(other, rel=1e-2)


def test_an_objective_that_waits_for_the_device_stays_eager(data_path, tmp_path):
    """A capture that it breaks leaves the device usable."""
    made, said = started(data_path, tmp_path), []
    made.say, objective = said.append, made.matcher.objective

    def waiting(real, syn, settings):
        real.embedding.sum().item()
        return objective(real, syn, settings)

    made.matcher.objective = waiting
    first, (images, _) = made.images().cpu(), after(made)
    assert_alike(images, after(started(data_path, tmp_path, "--graphs", "off"))[0], first)
    assert len(said) == 1 and said[0].startswith("warning: steps run eagerly")


@pytest.mark.parametrize("model", ["ConvNetD1", "ConvNetBN", "ResNet18"])
def test_networks_together_equal_single_ones(model, data_path):
    data = load("CIFAR10", data_path).to("cuda")
    settings = ProtocolSettings(model=model, num_eval=3, epoch_eval_train=2, batch_train=16, lr_net=0.002)
    what = TrainingSet(data.normalise(data.x_train[:40]), data.y_train[:40], 0, 5)
    found = {
        together: Evaluator(data, settings, Machine("cuda"), together=together).trained(model, what, range(3), print)
        for together in (True, False)
    }
    assert [one.together for one in found[True]] == [3] * 3 and [one.together for one in found[False]] == [1] * 3
    curves = [torch.tensor([one.curve for one in found[together]])[..., 0] for together in (True, False)]
    torch.testing.assert_close(*curves, rtol=1e-3, atol=1e-4)  # the losses


def test_a_graph_resumes_in_the_middle(data_path, tmp_path):
    whole, half = (started(data_path, tmp_path, *CASES["best"]) for _ in range(2))
    first, (expected, _) = whole.images().cpu(), after(whole)
    after(half, WARM_UP + 2)
    resumed = started(data_path, tmp_path, *CASES["best"])
    resumed.start(0, half.state())
    for iteration in range(WARM_UP + 3, 10):
        resumed.step(iteration)
    assert_alike(resumed.images().cpu(), expected, first)


def test_a_step_equals_that_of_the_cpu(data_path, tmp_path):
    made = started(data_path, tmp_path, *CASES["best"])
    cpu = started(data_path, tmp_path, *CASES["best"], "--device", "cpu")
    first, (images, _), (expected, _) = cpu.images().clone(), after(made, 1), after(cpu, 1)
    assert_alike(images, expected, first, share=0.05)


def test_a_step_never_waits_for_the_device(data_path, tmp_path):
    made = started(data_path, tmp_path, *CASES["best"])
    after(made, WARM_UP + 2)  # the capture waits once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for iteration in range(WARM_UP + 3, 10):
            made.step(iteration)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("size", [(32, 32), (28, 28)])
def test_augmentation_equals_that_of_the_cpu(size):
    x = torch.randn(12, 3, 3, *size, generator=torch.Generator().manual_seed(0))
    strategy = "color_crop_cutout_flip_scale_rotate"
    here, there = (Siamese(strategy, size, device) for device in ("cpu", "cuda"))
    expected = here.applied(x, here.drawn(list(range(12))))
    drawn = {name: value.cuda() for name, value in there.drawn(list(range(12))).items()}
    torch.testing.assert_close(there.applied(x.cuda(), drawn).cpu(), expected, rtol=0, atol=5e-5)
