"""The objective's terms against the published functions, against plain loops, and at their edges."""

import numpy as np
import pytest
import torch

from ddm.errors import UserError
from ddm.losses import (
    correlation_matching,
    intra_class_diversity,
    mean_matching,
    moments_matching,
    readout_matching,
    spread_matching,
)


@pytest.fixture
def values(reference):
    return {k: torch.from_numpy(v) for k, v in np.load(reference / "losses.npz").items()}


def test_equal_to_the_published_losses(values):
    real, syn = ([values[f"{side}{layer}"][None] for layer in (0, 1)] for side in ("real", "syn"))
    assert moments_matching(real, syn).item() == pytest.approx(values["mm_layer_mean"].item(), rel=1e-5)
    assert correlation_matching(real, syn).item() == pytest.approx(values["cm_layer_mean"].item(), rel=1e-5)
    for layer in (0, 1):
        one = real[layer : layer + 1], syn[layer : layer + 1]
        assert moments_matching(*one).item() == pytest.approx(values[f"mm_batchmean{layer}"].item(), rel=1e-5)
        assert correlation_matching(*one).item() == pytest.approx(values[f"cm{layer}"].item(), rel=1e-5)
    mmd = mean_matching(values["emb_real"][None], values["emb_syn"][None])
    assert mmd.item() == pytest.approx(values["mmd"].item(), rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_diversity_equals_the_published_one_with_its_gradient(values, k):
    syn = values["emb_syn"].double()[None].requires_grad_()
    loss = intra_class_diversity(syn, k)
    loss.sum().backward()
    assert loss.item() == pytest.approx(values[f"icd_k{k}"].item(), rel=1e-9)
    torch.testing.assert_close(syn.grad[0], values[f"icd_k{k}_grad"])


# The same terms, written class by class and image by image from the equations.


def plain_mmd(real, syn):
    return sum((r.mean(0) - s.mean(0)).pow(2).sum() for r, s in zip(real, syn, strict=True))


def plain_mm(real_maps, syn_maps):
    total = 0
    for c in range(len(real_maps[0])):
        for real, syn in zip(real_maps, syn_maps, strict=True):
            moments = []
            for batch in (real[c], syn[c]):
                mean_map = sum(batch) / len(batch)
                mu = torch.stack([channel.mean() for channel in mean_map])
                sd = torch.stack([(channel.flatten().var(unbiased=True) + 1e-5).sqrt() for channel in mean_map])
                moments.append((mu, sd))
            (mu_R, sd_R), (mu_S, sd_S) = moments
            total = total + ((mu_S - mu_R).pow(2).mean() + (sd_S - sd_R).pow(2).mean()) / 2 / len(real_maps)
    return total


def plain_cm(real_maps, syn_maps):
    def mean_gram(batch):
        grams = [image.flatten(1) @ image.flatten(1).T / image.numel() for image in batch]
        return sum(grams) / len(grams)

    total = 0
    for c in range(len(real_maps[0])):
        for real, syn in zip(real_maps, syn_maps, strict=True):
            total = total + (mean_gram(syn[c]) - mean_gram(real[c])).pow(2).sum() / len(real_maps)
    return total


def plain_icd(syn, k):
    total = 0
    for images in syn:
        for i, x in enumerate(images):
            others = [j for j in range(len(images)) if j != i]
            others.sort(key=lambda j: (images[j] - x).norm().item())
            m = torch.stack([images[j] for j in others[:k]]).mean(0)
            p, q = x.softmax(0), m.softmax(0)
            total = total - (p * (p.log() - q.log())).sum() / len(images)
    return total


def random_maps(n, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, n, 5, 6, 4), (3, n, 7, 3, 3))
    return [torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("fused", "plain"), [(moments_matching, plain_mm), (correlation_matching, plain_cm)])
def test_style_terms_equal_plain_loops_over_classes(fused, plain):
    real, syn = random_maps(6, 0), random_maps(2, 1)
    a, b = fused(real, syn).sum(), plain(real, syn)
    torch.testing.assert_close(a, b)
    for x, y in zip(torch.autograd.grad(a, syn), torch.autograd.grad(b, syn), strict=True):
        torch.testing.assert_close(x, y)


def test_embedding_terms_equal_plain_loops_over_classes():
    generator = torch.Generator().manual_seed(2)
    real = torch.randn(3, 7, 11, generator=generator, dtype=torch.float64)
    syn = torch.randn(3, 5, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    pairs = [(mean_matching(real, syn).sum(), plain_mmd(real, syn))]
    pairs += [(intra_class_diversity(syn, k).sum(), plain_icd(syn, k)) for k in (1, 2, 4)]
    for a, b in pairs:
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(*(torch.autograd.grad(x, syn)[0] for x in (a, b)))


def finite_with_gradient(loss, *inputs):
    loss = loss.sum()
    gradients = torch.autograd.grad(loss, inputs)
    return loss.isfinite() and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: mean_matching(torch.rand(20, 64), torch.rand(5, 64)), r"\[20, 64\] and \[5, 64\]"),
        (lambda: mean_matching(torch.rand(3, 20, 64), torch.rand(2, 5, 64)), r"\[3, 20, 64\] and \[2, 5, 64\]"),
        (lambda: moments_matching(torch.rand(3, 20, 8, 4, 4), torch.rand(3, 5, 8, 4, 4)), "in a list over layers"),
        (lambda: correlation_matching([torch.rand(3, 20, 8, 4)], [torch.rand(3, 5, 8, 4)]), r"\[3, 20, 8, 4\]"),
        (lambda: intra_class_diversity(torch.rand(5, 64), 2), r"\[5, 64\]"),
    ],
)
def test_other_shapes_are_one_line(call, found):
    with pytest.raises(UserError, match=f"this loss needs .*{found}"):
        call()


def test_duplicates_ipc_1_and_extreme_values_stay_finite():
    for scale in (1.0, 1e4):
        syn = (torch.randn(2, 6, 20) * scale).requires_grad_()
        assert finite_with_gradient(intra_class_diversity(syn, 2), syn)
        duplicates = (torch.randn(2, 1, 20) * scale).repeat(1, 6, 1).requires_grad_()
        loss = intra_class_diversity(duplicates, 2)
        assert finite_with_gradient(loss, duplicates) and loss.abs().max() < 1e-3
        one = (torch.randn(2, 1, 20) * scale).requires_grad_()
        assert (intra_class_diversity(one, 1) == 0).all() and finite_with_gradient(intra_class_diversity(one, 1), one)
        constant = [torch.full((2, 3, 4, 5, 5), scale, requires_grad=True)]
        for term in (moments_matching, correlation_matching):
            assert finite_with_gradient(term([torch.zeros(2, 8, 4, 5, 5)], constant), *constant)
        pixel = [torch.full((2, 3, 4, 1, 1), scale, requires_grad=True)]  # a map of one position
        assert finite_with_gradient(moments_matching([torch.zeros(2, 8, 4, 1, 1)], pixel), *pixel)


def test_an_image_is_never_its_own_neighbour():
    """Of a duplicate pair each is the other's neighbour, at distance 0; the far image has a duplicate."""
    a, far = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 0.0, 0.0])
    syn = torch.stack([a, a, far])[None]
    p, q = far.softmax(0), a.softmax(0)
    assert intra_class_diversity(syn, 1).item() == pytest.approx(-(p * (p / q).log()).sum().item() / 3, rel=1e-5)


def plain_image_moments(maps):
    """Class by class and image by image: [classes, 2, C] of E_x mu(x), E_x sd(x)."""
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack([image.flatten(1).mean(1) for image in batch]).mean(0),
                    torch.stack([(image.flatten(1).var(1) + 1e-5).sqrt() for image in batch]).mean(0),
                ]
            )
            for batch in maps
        ]
    )


@pytest.mark.parametrize("relative", [False, True])
def test_moments_of_images_equal_a_plain_loop(relative):
    real, syn = random_maps(6, 0), random_maps(2, 1)
    expected = 0
    for r, s in zip(map(plain_image_moments, real), map(plain_image_moments, syn), strict=True):
        for which in (0, 1):
            mse = (s[:, which] - r[:, which]).pow(2).mean(1)
            expected = expected + (mse / (r[:, which].pow(2).mean(1) + 1e-5) if relative else mse) / 2 / len(real)
    torch.testing.assert_close(moments_matching(real, syn, "image", relative), expected)


def test_only_the_moments_of_images_do_not_depend_on_the_batch_size():
    """White noise averages out of the mean map, so that its deviation shrinks with the number of images."""
    many = torch.randn(1, 256, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    few = many[:, :4]
    assert moments_matching([many], [few], "batch") > 20 * moments_matching([many], [few], "image")


@pytest.mark.parametrize("term", [moments_matching, correlation_matching])
def test_relative_terms_do_not_change_when_features_are_scaled(term):
    real, syn = random_maps(6, 0), random_maps(2, 1)
    small, large = (term(*([s * maps for maps in own] for own in (real, syn)), relative=True) for s in (10, 1000))
    torch.testing.assert_close(large, small, rtol=1e-3, atol=0)  # the 1e-5 under the root is of no scale


def test_spread_equals_the_formula_by_singular_vectors():
    generator = torch.Generator().manual_seed(3)
    real = torch.randn(2, 30, 12, generator=generator, dtype=torch.float64) * torch.arange(1.0, 13)
    syn = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = []
    for r, s in zip(real, syn, strict=True):
        directions = torch.linalg.svd(r - r.mean(0), full_matrices=False).Vh[:4]  # ipc - 1 of them
        sd_R, sd_S = ((x @ directions.T).std(0) for x in (r, s))
        expected.append(((sd_S - sd_R) / sd_R).pow(2).mean())
    loss = spread_matching(real, syn)
    torch.testing.assert_close(loss, torch.stack(expected))
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), syn)[0], torch.autograd.grad(torch.stack(expected).sum(), syn)[0]
    )
    # Bounded, where the KL is not: half of every deviation costs a quarter of 1, none at all costs 1.
    few = real[:, :13]
    torch.testing.assert_close(spread_matching(few, 0.5 * few)[0].item(), 0.25, rtol=1e-6, atol=0)
    torch.testing.assert_close(spread_matching(few, 0 * few)[0].item(), 1.0, rtol=1e-4, atol=0)
    for images in (syn[:, :1], torch.zeros(2, 4, 12, dtype=torch.float64)):
        x = images.detach().clone().requires_grad_()
        assert finite_with_gradient(spread_matching(real, x), x)
    assert (spread_matching(real, syn[:, :1]) == 0).all()


def test_readout_equals_ridge_regression_by_a_library():
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(4)
    real = torch.randn(3, 7, 11, generator=generator, dtype=torch.float64) + 2
    syn = torch.randn(3, 4, 11, generator=generator, dtype=torch.float64) + 2
    flat = real.flatten(0, 1)
    scale = (flat - flat.mean(0)).pow(2).mean().sqrt()
    r, s = (((x.flatten(0, 1) - flat.mean(0)) / scale).numpy() for x in (real, syn))
    targets = np.eye(3) - 1 / 3
    alpha = 0.3 * (s**2).sum(1).mean()  # ridge times the mean diagonal of s s^T
    model = Ridge(alpha, fit_intercept=False).fit(s, targets.repeat(4, 0))
    error = ((model.predict(r) - targets.repeat(7, 0)) ** 2).sum(1).reshape(3, 7).mean(1)
    torch.testing.assert_close(readout_matching(real, syn, 0.3), torch.from_numpy(error))
    x = syn.clone().requires_grad_()
    assert finite_with_gradient(readout_matching(real, x, 0.3), x)
    same = torch.ones(3, 4, 11, requires_grad=True)  # equal images, and a single one
    assert finite_with_gradient(readout_matching(real.float(), same, 0.1), same)
    assert finite_with_gradient(readout_matching(real.float(), same[:, :1], 0.1), same)
