"""The choices that terms leave open: where maps are read, which weights remove a term, the published accumulator."""

import numpy as np
import pytest
import torch
from conftest import QUICK, maker, parse, parsed
from torch import nn

from ddm import rng
from ddm.data import loading
from ddm.errors import UserError
from ddm.losses import intra_class_diversity
from ddm.methods import objective
from ddm.methods.matching import Features, accumulator_weights, check_terms
from ddm.networks import empty_network, get_network, initialise

TINY = [*QUICK, "--model", "ConvNetW32", "--compile", "off", "--class_chunk", "4"]


def some_images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "layer"), [("conv", nn.Conv2d), ("norm", nn.GroupNorm), ("act", nn.ReLU)])
def test_taps_read_what_the_layer_gives_and_nothing_later_changes_it(kind, layer):
    net, seen = get_network("ConvNet", 3, 10), []
    for module in net.features:
        if isinstance(module, layer):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    net.tap(kind)
    with torch.no_grad():
        _, maps = net.embed(some_images())
    assert len(maps) == 3 and all(torch.equal(a, b) for a, b in zip(maps, seen, strict=True))
    negative = [m.min() < 0 for m in maps]
    assert all(negative) if kind != "act" else not any(negative)


def test_some_layers_the_published_form_and_none():
    net = get_network("ConvNet", 3, 10)
    net.tap("pool", [0, 2])
    _, maps = net.embed(some_images())
    assert [m.shape[-1] for m in maps] == [16, 4]
    net.tap("published")
    assert net.taps == get_network("ConvNet_gram", 3, 10).taps == net.sites["act"]
    net.tap("none")
    assert net.embed(some_images()).shape == (4, 2048)


@pytest.mark.parametrize(
    ("model", "kind", "layers", "text"),
    [
        ("MLP", "published", None, "declare its sites"),
        ("ResNet18", "conv", None, "published"),
        ("ConvNet", "act", [3], "0 to 2"),
    ],
)
def test_what_is_not_there_is_refused(model, kind, layers, text):
    with pytest.raises(UserError, match=text):
        empty_network(model, 3, 10, (32, 32), "meta").tap(kind, layers)


def terms_of(data_path, *argv):
    """The unsummed terms of one step's images by class chunks, under the recipe."""
    data = loading.load("CIFAR10", data_path)
    made = maker("DM_DDM", parse("DM_DDM", *TINY, "--data_path", data_path, *argv), data)
    under, laid_out = made.matcher, made.plan.machine.laid_out
    initialise(under.net, rng.generator(0, 0, 1, -1, "network"))
    real, syn = (data.batch(torch.stack([own[:n] for own in data.indices])) for n in (6, 2))
    syn = syn + 0.1 * torch.randn(syn.shape, generator=torch.Generator().manual_seed(1))
    return {
        classes: under.terms(laid_out(real[list(classes)]), laid_out(syn[list(classes)]), classes)
        for classes in (range(3), range(3, 4), range(4, 10), range(10))
    }


def test_a_weight_of_0_removes_its_term_and_what_it_reads(data_path):
    for preset, names in {"dm": {"L_MMD"}, "published": {"L_MMD", "L_MM", "L_ICD"}}.items():
        assert terms_of(data_path, "--preset", preset)[range(3)].keys() == names
    assert objective.needs(parse("DM_DDM", "--preset", "dm")).statistics == {}
    assert objective.needs(parse("DM_DDM", "--preset", "dm", "--cm_ratio", "1")).statistics.keys() == {"mean_gram"}
    with pytest.raises(UserError, match="every weight is 0"):
        objective.settle(parsed("DM_DDM", "--preset", "dm", "--mmd_ratio", "0"))
    with pytest.raises(UserError, match="L_ICD is 0 at --ipc 1"):
        objective.settle(parsed("DM_DDM", "--preset", "dm", "--mmd_ratio", "0", "--icd_ratio", "1", "--ipc", "1"))


def test_terms_are_weighted_and_sums_over_classes(data_path):
    whole = terms_of(data_path)
    for name, value in whole[range(10)].items():
        parts = sum(whole[own][name] for own in (range(3), range(3, 4), range(4, 10)))
        torch.testing.assert_close(parts, value, rtol=1e-4, atol=1e-6)
    double = terms_of(data_path, "--mm_ratio", "20000", "--cm_ratio", "5000")[range(10)]
    for name, factor in {"L_MM": 2, "L_CM": 0.5, "L_MMD": 1, "L_ICD": 1}.items():
        torch.testing.assert_close(double[name], factor * whole[range(10)][name])


def test_the_published_accumulator_is_the_sum_that_is_never_reset(data_path):
    """style_loss = (style_loss + sum over layers) / layers, class after class, every value added to the loss."""
    layers = 3
    by_class = {c: 0.3 + c for c in range(10)}  # a term of class c, a mean over layers
    total = s = 0.0
    for c in range(10):
        s = (s + layers * by_class[c]) / layers
        total += s
    weights = accumulator_weights(10, layers)
    assert sum(w * by_class[c] for c, w in enumerate(weights)) == pytest.approx(total)
    assert weights[-1] == 1 and weights == sorted(weights, reverse=True)
    plain, summed = (terms_of(data_path, *argv) for argv in ([], ["--published_accumulator"]))
    for own in (range(3, 4),):  # a single class: the term times its weight, wherever the chunk begins
        for name in ("L_MM", "L_CM"):
            torch.testing.assert_close(summed[own][name], weights[3] * plain[own][name])
        assert summed[own]["L_MMD"] == plain[own]["L_MMD"] and summed[own]["L_ICD"] == plain[own]["L_ICD"]


def test_the_accumulator_equals_the_reference(reference):
    values = np.load(reference / "losses.npz")
    inputs = torch.from_numpy(values["legacy_accumulator_inputs"])  # [classes, layers]
    weights = torch.tensor(accumulator_weights(*inputs.shape), dtype=inputs.dtype)
    total = (weights * inputs.mean(1)).sum()
    assert total.item() == pytest.approx(values["legacy_accumulator_total"].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (torch.zeros(3), "returned a Tensor: return a dict"),
        ({"L_MMD": torch.zeros(())}, r"term 'L_MMD' is \[\]: return one value per class, \[3\]"),
        ({"L_MMD": torch.zeros(3), "L_X": torch.zeros(3, 2)}, r"term 'L_X' is \[3, 2\]"),
        ({"L_MMD": 0.5}, "term 'L_MMD' is float"),
    ],
)
def test_an_objective_returns_one_value_per_class(returned, text):
    with pytest.raises(UserError, match=text):
        check_terms(returned, 3)
    check_terms({"L_MMD": torch.zeros(3)}, 3)


def test_k_follows_the_images_of_a_class_if_it_is_unset():
    syn = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(0))
    settings = parse("DM_DDM", "--ipc", "10").but(k=None)  # as ipc from a file leaves it
    found = objective.diversity(Features(syn, {}), Features(syn, {}), settings)
    assert torch.equal(found, intra_class_diversity(syn, 2))
