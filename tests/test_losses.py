"""The objective's terms against the published functions, against plain loops, and at their edges."""

import numpy as np
import pytest
import torch

from losses import correlation_matching, intra_class_diversity, mean_matching, moments_matching


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
