"""--weights balanced: the weight of a loss is the norm of its gradient, relative to that of L_MMD."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK, maker, parse, parsed

from ddm import networks, rng
from ddm.data import loading
from ddm.errors import UserError
from ddm.losses import PER_CLASS, balanced, mean_gram
from ddm.methods import objective
from ddm.methods.matching import features
from ddm.networks import get_network, initialise

LINE = [*QUICK, "--model", "ConvNetW32", "--compile", "off", "--precision", "fp32", "--weights", "balanced"]


def test_each_gradient_has_its_weight_times_the_norm_of_the_reference():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=draw, requires_grad=True)
    reference, one, two = (torch.randn(3, 4, 5, generator=draw) for _ in range(3))
    a, b, c = balanced(x, (0.5, 2.0), PER_CLASS)
    (1e-3 * (a * reference) + 1e6 * (b * one) + 1e-6 * (c * two)).sum().backward()
    for k in range(3):
        size = 1e-3 * reference[k].norm()
        expected = 1e-3 * reference[k] + 0.5 * size * one[k] / one[k].norm() + 2 * size * two[k] / two[k].norm()
        torch.testing.assert_close(x.grad[k], expected)


def test_a_loss_without_gradient_adds_nothing():
    x = torch.ones(2, 3, 4, requires_grad=True)
    a, b, _ = balanced(x, (1.0, 1.0), PER_CLASS)  # the third copy is not read at all
    (1e6 * a.square().sum() + 0 * b.sum()).backward()
    assert torch.equal(x.grad, 2e6 * x.detach())


@pytest.mark.parametrize("kind", ["conv", "norm", "act"])
def test_style_gradients_are_balanced_at_their_map(kind):
    net = initialise(get_network("ConvNet", 3, 4), torch.Generator().manual_seed(0))
    net.tap(kind, [2])
    images = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    target, weight = torch.randn(2, 2048, generator=torch.Generator().manual_seed(2)), 0.7

    machine = SimpleNamespace(autocast=contextlib.nullcontext)
    made = features(net, images, {"mean_gram": mean_gram}, machine, {"mean_gram": weight})
    (1e3 * made.style["mean_gram"][0].square().sum() + ((made.embedding.mean(1) - target) ** 2).sum()).backward()

    layers = list(net.features)
    at = net.taps[0] + 1
    x = images.detach().flatten(0, 1).requires_grad_()
    tapped = torch.nn.Sequential(*layers[:at])(x)
    leaf = tapped.detach().clone().requires_grad_()
    embedding = torch.nn.Sequential(*layers[at:])(leaf.clone()).flatten(1).unflatten(0, (2, 3))
    rest = torch.autograd.grad(((embedding.mean(1) - target) ** 2).sum(), leaf)[0]
    style = torch.autograd.grad(mean_gram(leaf.unflatten(0, (2, 3))).square().sum(), leaf)[0]
    combined = torch.stack([r + weight * r.norm() * s / s.norm() for r, s in zip(rest, style, strict=True)])
    tapped.backward(combined)
    torch.testing.assert_close(images.grad.flatten(0, 1), x.grad, rtol=1e-3, atol=1e-5 * x.grad.abs().max().item())


def gradients(data_path, classes, *argv, scale=1.0):
    """The gradient at some classes' synthetic images under one network, with every loss but L_MMD times `scale`."""
    settings = parse("DM_DDM", *LINE, "--data_path", data_path, *argv)
    data = loading.load("CIFAR10", data_path)
    made = maker("DM_DDM", settings, data)

    def scaled(real, syn, settings):
        terms = objective.objective(real, syn, settings)
        return {name: value if name == "L_MMD" else scale * value for name, value in terms.items()}

    made.matcher.objective = scaled
    initialise(made.matcher.net, rng.generator(0, 0, 1, -1, "network"))
    real, syn = (data.batch(torch.stack([own[:n] for own in data.indices])) for n in (6, 2))
    syn = syn + 0.1 * torch.randn(syn.shape, generator=torch.Generator().manual_seed(1))
    syn = syn[list(classes)].requires_grad_()
    sum(made.matcher.terms(real[list(classes)], syn, classes).values()).backward()
    return syn.grad


ALL = ("--mm_ratio", "0.5", "--cm_ratio", "0.5", "--icd_ratio", "0.2")


@pytest.mark.parametrize(
    "argv", [(*ALL, "--rr_ratio", "1"), ALL, (*ALL, "--style_tap", "norm", "--icd_form", "spread")]
)
def test_the_scale_of_a_loss_has_no_effect_and_its_weight_has(argv, data_path):
    plain, scaled = (gradients(data_path, range(10), *argv, scale=scale) for scale in (1, 1e3))
    torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-4 * plain.abs().max().item())
    other = gradients(data_path, range(10), *argv, "--cm_ratio", "1")
    assert (other - plain).abs().max() > 0.01 * plain.abs().max()


def test_classes_are_balanced_one_by_one(data_path):
    whole = gradients(data_path, range(10), *ALL)
    parts = torch.cat([gradients(data_path, classes, *ALL) for classes in (range(3), range(3, 4), range(4, 10))])
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


def test_what_balancing_can_not_do_is_refused():
    with pytest.raises(UserError, match="set --mmd_ratio above 0"):
        objective.settle(parsed("DM_DDM", *LINE, "--mmd_ratio", "0"))
    with pytest.raises(UserError, match="leave one out"):
        objective.settle(parsed("DM_DDM", *LINE, "--preset", "dm", "--weights", "balanced", "--published_accumulator"))


def test_mean_matching_is_the_reference_by_itself(data_path):
    alone = gradients(data_path, range(10), "--preset", "dm")
    assert torch.equal(alone, gradients(data_path, range(10), "--preset", "dm", "--weights", "absolute"))


def test_second_derivatives_are_refused():
    x = torch.ones(2, 3, 4, requires_grad=True)
    a, b = balanced(x, (1.0,), PER_CLASS)
    (gradient,) = torch.autograd.grad((a.square() + b.sin()).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_a_weight_that_is_a_factor_of_a_loss_is_refused():
    with pytest.raises(UserError, match="--mm_ratio 10000 is a factor of a loss"):
        parse("DM_DDM", *LINE)  # the default weights are the published factors


def test_a_network_whose_embed_has_no_split(data_path, monkeypatch):
    class Own(networks.Network):
        def embed(self, x):
            return super().embed(x)

    def small(channel, num_classes, im_size):
        net = get_network("ConvNetW32", channel, num_classes, im_size)
        net.__class__ = Own
        return net

    monkeypatch.setitem(networks.ARCHITECTURES, "Own", small)
    data = loading.load("CIFAR10", data_path)
    plain = [*QUICK, "--model", "Own", "--weights", "balanced", "--mm_ratio", "0", "--cm_ratio", "0", "--rr_ratio", "1"]
    made = maker("DM_DDM", parse("DM_DDM", *plain), data)
    made.prepare()
    made.start(0, None)
    made.step(1)  # no style term, so no split
    with pytest.raises(UserError, match="embed has no argument `split`"):
        maker("DM_DDM", parse("DM_DDM", *plain, "--mm_ratio", "1"), data)
