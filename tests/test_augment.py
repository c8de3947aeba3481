"""DSA against the published operations, and the properties that condensation needs."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import augment as handed_on
import ddm.augment
from ddm.augment import (
    OPERATIONS,
    DiffAugment,
    ParamDiffAug,
    Parameters,
    applied,
    augment_classes,
    draw_classes,
    draw_images,
    numbers_of_class,
    parameters,
)
from ddm.compat import augment, get_daparam
from ddm.errors import UserError

STRATEGY = "color_crop_cutout_flip_scale_rotate"


def test_equal_to_the_published_augmentation(reference):
    values = np.load(reference / "dsa.npz")
    x = torch.from_numpy(values["x"])
    cases = [case for case in values if case != "x"]
    assert len(cases) >= 8
    for case in cases:
        strategy, seed = case.split("/seed")
        out = DiffAugment(x, strategy, seed=int(seed), param=ParamDiffAug())
        np.testing.assert_allclose(out, values[case], rtol=0, atol=1e-5, err_msg=case)


@pytest.mark.parametrize("name", OPERATIONS)
def test_siamese_draws_are_shared_and_leave_the_global_generator(name):
    x, y = torch.randn(5, 3, 16, 16), torch.randn(2, 3, 16, 16)
    state = torch.get_rng_state()
    together = DiffAugment(torch.cat([x, y]), name, seed=3)
    apart = torch.cat([DiffAugment(x, name, seed=3), DiffAugment(y, name, seed=3)])
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(together, apart)
    assert any(not torch.equal(DiffAugment(x, name, seed=s), x) for s in range(4))


@pytest.mark.parametrize("name", OPERATIONS)
def test_per_image_draws_differ_and_follow_from_their_generator(name):
    x = torch.randn(1, 3, 16, 16).expand(32, -1, -1, -1).contiguous()
    out = DiffAugment(x, name, seed=-1, generator=torch.Generator().manual_seed(0))
    assert len({tuple(image.flatten().tolist()) for image in out}) > 1
    again = DiffAugment(x, name, seed=-1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out, again)


@pytest.mark.parametrize("mode", ["S", "M"])
@pytest.mark.parametrize("shape", [(7, 2, 3, 16, 16), (3, 60, 3, 32, 32), (1, 2, 1, 28, 28)])
def test_classes_augmented_together_equal_classes_augmented_alone(shape, mode):
    param, strategy = ParamDiffAug(aug_mode=mode), "_".join(OPERATIONS)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for first in range(0, 50, 10):
        seeds = [first + c for c in range(shape[0])]
        together = augment_classes(x, strategy, seeds, param)
        alone = torch.stack([DiffAugment(y, strategy, s, param) for y, s in zip(x, seeds, strict=True)])
        assert torch.equal(together, alone)
        weights = torch.rand(shape, generator=torch.Generator().manual_seed(first))
        gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (together, alone)]
        torch.testing.assert_close(*gradients)


def test_without_a_generator_draws_come_from_the_global_one():
    x = torch.randn(4, 3, 16, 16)
    torch.manual_seed(11)
    first = DiffAugment(x, STRATEGY)
    second = DiffAugment(x, STRATEGY)
    torch.manual_seed(11)
    assert torch.equal(first, DiffAugment(x, STRATEGY)) and not torch.equal(first, second)


@pytest.mark.parametrize("seed", [-1, 4])
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_flow_to_the_images(name, seed):
    x = torch.randn(3, 3, 16, 16, requires_grad=True)
    DiffAugment(x, name, seed=seed).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_gradient_equals_the_numerical_one():
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    for name in ("color", "crop", "cutout", "flip"):
        assert torch.autograd.gradcheck(lambda x, name=name: DiffAugment(x, name, seed=2), x)


def test_mode_m_applies_every_operation_in_order():
    x, param = torch.randn(3, 3, 16, 16), ParamDiffAug(aug_mode="M")
    expected, seeds = x, itertools.count(6)
    for name in ("color", "crop", "cutout"):
        operation = OPERATIONS[name]
        expected = operation.apply(expected, param, *numbers_of_class(operation, seeds, (16, 16), param))
    assert torch.equal(DiffAugment(x, "color_crop_cutout", seed=5, param=param), expected)


@pytest.mark.parametrize("strategy", ["", "none", "None"])
def test_none_is_the_identity(strategy):
    x = torch.randn(2, 3, 8, 8)
    assert DiffAugment(x, strategy, seed=1) is x


def test_unknown_parts_are_named():
    with pytest.raises(UserError, match=r"colour.*'color'"):
        DiffAugment(torch.zeros(1, 3, 8, 8), "colour_crop", seed=1)


def test_published_parameters():
    p = ParamDiffAug()
    expected = {"aug_mode": "S", "prob_flip": 0.5, "ratio_scale": 1.2, "ratio_rotate": 15.0, "ratio_crop_pad": 0.125}
    expected |= {"ratio_cutout": 0.5, "brightness": 1.0, "saturation": 2.0, "contrast": 0.5}
    assert {k: getattr(p, k) for k in expected} == expected and hasattr(p, "Siamese") and hasattr(p, "latestseed")


@pytest.mark.parametrize("strategy", ["crop", "scale", "rotate", "noise", "crop_scale_rotate"])
def test_dc_augmentation_keeps_the_shape_and_changes_images(strategy):
    np.random.seed(0)  # noqa: NPY002 - augment draws from numpy's global generator, as published
    images = torch.rand(6, 1, 28, 28) + 1
    out = augment(images, get_daparam("MNIST", "ConvNet", "ConvNet", 1) | {"strategy": strategy}, "cpu")
    assert out.shape == images.shape and out.dtype == images.dtype and not torch.equal(out, images)
    assert augment(images, get_daparam("CIFAR10", "ConvNet", "ConvNet", 1), "cpu") is images
    assert get_daparam("CIFAR10", "ConvNet", "ConvNetBN", 1)["strategy"] == "crop_noise"
    assert get_daparam("MNIST", "ConvNet", "ConvNet", 1)["strategy"] == "crop_scale_rotate"


def test_dc_crop_fills_with_the_mean_of_each_channel():
    images = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(4, 3, 8, 8).clone()
    out = augment(images, get_daparam("CIFAR10", "ConvNet", "ConvNetBN", 1) | {"strategy": "crop"}, "cpu")
    torch.testing.assert_close(out, images)


def test_dc_scale_draws_anew_for_every_image():
    np.random.seed(0)  # noqa: NPY002 - as above
    images = torch.rand(1, 1, 28, 28).expand(6, -1, -1, -1).clone()
    out = augment(images, get_daparam("MNIST", "ConvNet", "ConvNet", 1) | {"strategy": "scale"}, "cpu")
    assert len({tuple(image.flatten().tolist()) for image in out}) > 3


def test_unknown_modes_are_refused():
    with pytest.raises(UserError, match="aug_mode 'X'"):
        DiffAugment(torch.zeros(1, 3, 8, 8), "crop", seed=1, param=ParamDiffAug(aug_mode="X"))


def test_augment_py_hands_on_the_names_of_version_0_1_0():
    assert handed_on.augment is augment and handed_on.get_daparam is get_daparam
    for name in ("OPERATIONS", "DiffAugment", "ParamDiffAug", "augment_classes"):
        assert getattr(handed_on, name) is getattr(ddm.augment, name)


def draws(names, n, size, seed):
    drawn = [draw_images(name, n, size, torch.Generator().manual_seed(seed + k)) for k, name in enumerate(names)]
    return parameters(*(torch.stack(part) for part in zip(*drawn, strict=True)), size)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 16, 24)])
def test_all_operations_in_one_call_equal_diffaugment(shape):
    names, n = [*OPERATIONS, STRATEGY], 4
    x = torch.randn(len(names), n, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for seed in range(0, 60, 10):
        generators = [torch.Generator().manual_seed(seed + k) for k in range(len(names))]
        pairs = zip(x, names, generators, strict=True)
        expected = torch.stack([DiffAugment(part, name, generator=g) for part, name, g in pairs])
        out = applied(x, draws(names, n, shape[1:], seed))
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)
        weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
        gradients = [torch.autograd.grad((result * weights).sum(), x)[0] for result in (out, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
        seeds = [seed + k for k in range(len(x))]
        together = applied(x, parameters(*draw_classes(STRATEGY, seeds, shape[1:]), shape[1:]))
        torch.testing.assert_close(together, augment_classes(x, STRATEGY, seeds), rtol=0, atol=2e-5)


def test_draws_of_images_leave_the_generator_as_diffaugment_does():
    g, h = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(20):
        DiffAugment(torch.zeros(3, 3, 16, 16), STRATEGY, generator=g)
        draw_images(STRATEGY, 3, (16, 16), h)
        assert torch.equal(g.get_state(), h.get_state())


def test_one_call_has_a_constant_number_of_device_calls_and_no_sync():
    """On the meta device a sync raises; views are no device calls."""
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.extend([] if function.is_view else [str(function)])
            return function(*args, **(kwargs or {}))

    for m in (1, 5):
        x = torch.empty(7, 5, 3, 32, 32, device="meta", requires_grad=True)
        with Count():
            out = applied(x, torch.empty(7, m, len(Parameters._fields), device="meta"))
        assert len(calls) <= 30, calls
        out.backward(torch.empty_like(out))
        calls.clear()
