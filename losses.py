"""The terms of the DDM objective as pure functions of tensors (WACV 2025, arXiv 2412.04748).

    L_total = L_MMD + beta * L_ICD + lambda * (alpha * L_MM + L_CM)

Every function takes all classes at once, classes first, and returns the **sum over classes** as a scalar
tensor. S is the number of synthetic images of a class, R the number of real ones; they may differ. Real tensors
carry no gradient in the method; nothing here detaches them, callers compute them under `no_grad`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_matching(real: Tensor, syn: Tensor) -> Tensor:
    """L_MMD: squared distance of the mean embeddings, summed over the embedding.

    real [classes, R, D], syn [classes, S, D]. Source: DM (Zhao & Bilen, WACV 2023), eq. 4.
    """
    return (_mean(real) - _mean(syn)).square().sum()  # || mean_R phi - mean_S phi ||^2


def moments_matching(real_maps: list[Tensor], syn_maps: list[Tensor]) -> Tensor:
    """L_MM: channel means and deviations of the batch-mean feature map, averaged over channels and layers.

    Lists over layers of [classes, R, C, H, W] and [classes, S, C, H, W]. Source: DDM, moments matching.
    """
    return moments_distance([mean_map(maps) for maps in real_maps], [mean_map(maps) for maps in syn_maps])


def correlation_matching(real_maps: list[Tensor], syn_maps: list[Tensor]) -> Tensor:
    """L_CM: squared Frobenius distance of the mean Gram matrices, averaged over layers.

    Lists over layers of [classes, R, C, H, W] and [classes, S, C, H, W]. Source: DDM, correlation matching.
    """
    return gram_distance([mean_gram(maps) for maps in real_maps], [mean_gram(maps) for maps in syn_maps])


# --- the style terms in two halves: a statistic, which is a mean over images and so can be taken part by part, ----
# --- and the distance of two sets of statistics                                                               ----


def moments_distance(real: list[Tensor], syn: list[Tensor]) -> Tensor:
    """L_MM from lists over layers of batch-mean maps [classes, C, H, W] (see `mean_map`)."""
    per_layer = []
    for mean_R, mean_S in zip(real, syn, strict=True):
        mu_R, sd_R = _moments(mean_R)
        mu_S, sd_S = _moments(mean_S)
        mse = (mu_S - mu_R).square().mean(1) + (sd_S - sd_R).square().mean(1)  # MSE over channels: [classes]
        per_layer.append(mse.sum() / 2)
    return torch.stack(per_layer).mean()


def gram_distance(real: list[Tensor], syn: list[Tensor]) -> Tensor:
    """L_CM from lists over layers of mean Gram matrices [classes, C, C] (see `mean_gram`)."""
    per_layer = [(G_S - G_R).square().sum() for G_R, G_S in zip(real, syn, strict=True)]  # || G_S - G_R ||_F^2
    return torch.stack(per_layer).mean()


def _moments(mean_map: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over positions of a map [classes, C, H, W], each [classes, C]."""
    flat = mean_map.flatten(2)
    # A map of one position has no variance to estimate; dividing by 0 would make it NaN.
    var = flat.var(dim=2, correction=min(1, flat.shape[2] - 1))
    return flat.mean(2), (var + 1e-5).sqrt()


def _mean(x: Tensor) -> Tensor:
    """Over images, dim 1, in float32 at least."""
    return x.mean(1, dtype=torch.promote_types(x.dtype, torch.float32))


def mean_map(maps: Tensor) -> Tensor:
    """Fbar, the mean over images of maps [classes, n, C, H, W]: [classes, C, H, W]."""
    return _mean(maps)


def mean_gram(maps: Tensor) -> Tensor:
    """G, the mean over images of F F^T / (C*H*W), of maps [classes, n, C, H, W]: [classes, C, C].

    The sum over images and the sum over positions are one contraction, so the Grams of single images, n times
    as large as the result, never exist. In bfloat16 they do: the one sum would be rounded to 8 bits, an error that
    the mean over images of rounded Grams divides by sqrt(n).
    """
    classes, n, c, h, w = maps.shape
    if maps.dtype == torch.bfloat16:
        f = maps.flatten(0, 1).permute(0, 2, 3, 1).reshape(classes * n, h * w, c)  # a view, if channels come last
        return _mean((f.transpose(1, 2) @ f).unflatten(0, (classes, n))) / (c * h * w)
    f = maps.permute(0, 1, 3, 4, 2).reshape(classes, n * h * w, c)  # a view, if channels come last
    return f.transpose(1, 2) @ f / (n * c * h * w)


def intra_class_diversity(syn: Tensor, k: int) -> Tensor:
    """L_ICD: minus the KL divergence of each image to the mean of its k nearest neighbours, averaged over images.

    syn [classes, S, D]; neighbours are Euclidean, of the same class, never the image itself. k is cut to S - 1;
    with one image a class the term is 0. Source: DDM, intra-class diversity.
    """
    S = syn.shape[1]
    k = min(k, S - 1)
    if k < 1:
        return syn.sum() * 0  # keeps the graph, so that a caller may call backward
    with torch.no_grad():
        distance = torch.cdist(syn, syn, compute_mode="donot_use_mm_for_euclid_dist")
        distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # itself, even where duplicates are as near
        nearest = distance.topk(k, largest=False).indices  # [classes, S, k]
    classes = torch.arange(syn.shape[0], device=syn.device)[:, None, None]
    m = syn[classes, nearest].mean(2)  # the gradient flows through m too
    log_p, log_q = F.log_softmax(syn, dim=-1), F.log_softmax(m, dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)  # KL(softmax(phi(x)) || softmax(m)): [classes, S]
    return -kl.mean(1).sum()
