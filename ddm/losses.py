"""The terms of the DDM objective as pure functions of tensors (WACV 2025, arXiv 2412.04748).

    L_total = L_MMD + beta * L_ICD + lambda * (alpha * L_MM + L_CM)

Every function takes all classes at once, in the first dimension, and returns one value per class, [classes]; the
objective is the sum over classes. A class has R real and S synthetic images. In the method real tensors carry no
gradient: callers compute them under `no_grad`, the functions do not detach them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddm.errors import UserError


def check_shapes(names: str, *tensors: Tensor) -> None:
    """Raise UserError if tensors lack the dimensions `names`, or differ in more than the number of images, dim 1."""
    shapes = [list(x.shape) for x in tensors]
    sizes = [shape[:1] + shape[2:] for shape in shapes]
    if tensors[0].ndim != names.count(",") + 1 or any(size != sizes[0] for size in sizes):
        found = " and ".join(map(str, shapes))
        raise UserError(f"this loss needs {names}, with equal sizes except of images, and found {found}: reshape them")


EMBEDDINGS, MAPS = "[classes, images, D]", "[classes, images, C, H, W] in a list over layers"


def mean_matching(real: Tensor, syn: Tensor) -> Tensor:
    """L_MMD [classes]: squared distance of the mean embeddings, summed over embedding dimensions.

    real [classes, R, D], syn [classes, S, D]; raises UserError for others. Source: DM (Zhao & Bilen, WACV 2023), eq. 4.
    """
    check_shapes(EMBEDDINGS, real, syn)
    return (_mean(real) - _mean(syn)).square().sum(1)  # || mean_R phi - mean_S phi ||^2


def moments_matching(
    real_maps: list[Tensor], syn_maps: list[Tensor], stats: str = "batch", relative: bool = False
) -> Tensor:
    """L_MM [classes]: squared differences of channel means and of deviations, averaged over both, channels and layers.

    Lists over layers of [classes, R, C, H, W] and [classes, S, C, H, W]. `stats` 'batch': moments of the batch-mean map
    (DDM, moments matching). 'image': the mean over images of each image's moments; it does not depend on the batch
    size. `relative` divides by the squared magnitude of the real moments. 'image' and `relative` are not of the DDM
    paper.
    """
    for pair in zip(real_maps, syn_maps, strict=True):
        check_shapes(MAPS, *pair)
    statistic = MOMENTS[stats]
    return moments_distance(*([statistic(m) for m in maps] for maps in (real_maps, syn_maps)), stats, relative)


def correlation_matching(real_maps: list[Tensor], syn_maps: list[Tensor], relative: bool = False) -> Tensor:
    """L_CM [classes]: squared Frobenius distance of the mean Gram matrices, averaged over layers.

    Lists over layers of [classes, R, C, H, W] and [classes, S, C, H, W]. `relative` (not of the DDM paper) divides by
    the squared norm of the real matrices. Source: DDM, correlation matching.
    """
    for pair in zip(real_maps, syn_maps, strict=True):
        check_shapes(MAPS, *pair)
    return gram_distance([mean_gram(maps) for maps in real_maps], [mean_gram(maps) for maps in syn_maps], relative)


# --- the style terms in two steps: a statistic, which is a mean over images and can be computed in parts, and ----
# --- the distance of the real and synthetic statistics                                                        ----


def moments_distance(real: list[Tensor], syn: list[Tensor], stats: str = "batch", relative: bool = False) -> Tensor:
    """L_MM [classes] from lists over layers of real and synthetic statistics MOMENTS[stats]."""
    per_layer = []
    for stat_R, stat_S in zip(real, syn, strict=True):
        # mu and sd: [classes, 2, C]
        moments_R, moments_S = ((channel_moments(s) if stats == "batch" else s) for s in (stat_R, stat_S))
        mse = (moments_S - moments_R).square().mean(2)  # over channels
        if relative:
            mse = mse / (moments_R.square().mean(2) + 1e-5)  # after a norm layer mu_R is 0, except for rounding
        per_layer.append(mse.mean(1))
    return torch.stack(per_layer).mean(0)


def gram_distance(real: list[Tensor], syn: list[Tensor], relative: bool = False) -> Tensor:
    """L_CM [classes] from lists over layers of mean Gram matrices [classes, C, C] (see `mean_gram`)."""
    per_layer = []
    for G_R, G_S in zip(real, syn, strict=True):
        distance = (G_S - G_R).square().sum((1, 2))  # || G_S - G_R ||_F^2
        per_layer.append(distance / (G_R.square().sum((1, 2)) + 1e-12) if relative else distance)
    return torch.stack(per_layer).mean(0)


def channel_moments(maps: Tensor) -> Tensor:
    """Mean and standard deviation over positions of maps [..., C, H, W]: [..., 2, C]."""
    flat = maps.flatten(-2)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    # A map of one position has no variance; the correction would divide by 0.
    var = flat.var(dim=-1, correction=min(1, flat.shape[-1] - 1))
    return torch.stack([flat.mean(-1), (var + 1e-5).sqrt()], dim=-2)


def _mean(x: Tensor) -> Tensor:
    """The mean over images, dim 1, at least in float32."""
    return x.mean(1, dtype=torch.promote_types(x.dtype, torch.float32))


def image_moments(maps: Tensor) -> Tensor:
    """The mean over images of mu(x) and sd(x), for maps [classes, n, C, H, W]: [classes, 2, C]."""
    return _mean(channel_moments(maps))


MOMENTS = {"batch": _mean, "image": image_moments}  # --style_stats -> the statistic of feature maps for L_MM


def mean_gram(maps: Tensor) -> Tensor:
    """The mean Gram matrix G, F F^T / (C*H*W) averaged over images, of maps [classes, n, C, H, W]: [classes, C, C].

    One contraction sums over images and positions, so the Gram matrices of single images are never stored. In bfloat16
    they are: a single sum would be rounded to 8 bits, while the mean of n rounded matrices divides that error by
    sqrt(n).
    """
    classes, n, c, h, w = maps.shape
    if maps.dtype == torch.bfloat16:
        f = maps.flatten(0, 1).permute(0, 2, 3, 1).reshape(classes * n, h * w, c)  # a view, if channels come last
        return _mean((f.transpose(1, 2) @ f).unflatten(0, (classes, n))) / (c * h * w)
    f = maps.permute(0, 1, 3, 4, 2).reshape(classes, n * h * w, c)  # a view, if channels come last
    return f.transpose(1, 2) @ f / (n * c * h * w)


def intra_class_diversity(syn: Tensor, k: int) -> Tensor:
    """L_ICD [classes]: minus the KL divergence of each image from the mean of its k nearest neighbours.

    syn [classes, S, D]. The mean over images is taken. Neighbours have the smallest Euclidean distance within the
    class, without the image itself. A k above S - 1 is S - 1; with one image per class the term is 0. Source: DDM,
    intra-class diversity.
    """
    check_shapes(EMBEDDINGS, syn)
    S = syn.shape[1]
    k = min(k, S - 1)
    if k < 1:
        return syn.sum((1, 2)) * 0  # 0 with a graph, so that callers may call backward
    with torch.no_grad():
        distance = torch.cdist(syn, syn, compute_mode="donot_use_mm_for_euclid_dist")
        distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # exclude the image itself, even with duplicates
        nearest = distance.topk(k, largest=False).indices  # [classes, S, k]
    classes = torch.arange(syn.shape[0], device=syn.device)[:, None, None]
    m = syn[classes, nearest].mean(2)  # the gradient flows through m too
    log_p, log_q = F.log_softmax(syn, dim=-1), F.log_softmax(m, dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)  # KL(softmax(phi(x)) || softmax(m)): [classes, S]
    return -kl.mean(1)


def spread_matching(real: Tensor, syn: Tensor) -> Tensor:
    """L_ICD [classes] bounded below by 0: squared relative difference of real and synthetic standard deviations.

    real [classes, R, D], syn [classes, S, D]. Deviations are along the first min(S - 1, R - 1, 16) principal directions
    of the real embeddings and averaged over these. With one image per class the term is 0. On CUDA eigh waits for the
    device. The term is not of the DDM paper.
    """
    R, S = real.shape[1], syn.shape[1]
    r = min(S - 1, R - 1, 16)
    if r < 1:
        return syn.sum((1, 2)) * 0
    with torch.no_grad():
        centred = real - real.mean(1, keepdim=True)
        # The R x R products replace the D x D covariance, as R is smaller.
        values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
        values, vectors = values[:, -r:].clamp(min=1e-12), vectors[:, :, -r:]
        directions = centred.transpose(1, 2) @ vectors / values.sqrt()[:, None]  # [classes, D, r], orthonormal
        sd_R = (values / (R - 1)).sqrt()
    sd_S = ((syn @ directions).var(1) + 1e-12).sqrt()
    return ((sd_S - sd_R) / sd_R).square().mean(1)


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """L_CE [classes]: cross-entropy of the images of each class, averaged over images.

    logits [classes, S, num_classes] of a trained network, labels [classes]. The term is not of the DDM paper. Source:
    IDM (Zhao et al., CVPR 2023), which calls it distribution regularisation.
    """
    S = logits.shape[1]
    loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(S), reduction="none")
    return loss.unflatten(0, (-1, S)).mean(1)


PER_IMAGE = (1, 2, 3)  # the dimensions of an image's map, of [N, C, H, W]
PER_CLASS = (1, 2)  # the dimensions of a class's embeddings, of [classes, n, D]


def balanced(x: Tensor, weights: tuple[float, ...], dims: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Copies of x, of its shape: one for a reference loss, and one per weight for another loss.

    In the backward pass the gradient of each other loss gets `weight` times the norm of the reference's gradient, so
    that the scale of the losses has no effect. Norms run over the dimensions `dims`, as PER_CLASS or PER_IMAGE. Second
    derivatives raise an error. Not of the DDM paper; source: the adaptive weight of VQGAN (Esser et al., CVPR 2021,
    eq. 7).
    """
    return _Balance.apply(x, tuple(weights), tuple(dims))


class _Balance(torch.autograd.Function):
    """See `balanced`."""

    @staticmethod
    def forward(ctx, x: Tensor, weights: tuple[float, ...], dims: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.weights, ctx.dims = weights, dims
        return tuple(x.view_as(x) for _ in range(1 + len(weights)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, reference: Tensor, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total, size = reference, _size(reference, ctx.dims)
        for weight, gradient in zip(ctx.weights, gradients, strict=True):
            factor = weight * size / _size(gradient, ctx.dims).clamp(min=1e-20)  # a gradient of 0 stays 0
            total = total + factor.to(total.dtype) * gradient
        return total, None, None


def _size(gradient: Tensor, dims: tuple[int, ...]) -> Tensor:
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(gradient, dim=dims, keepdim=True, dtype=wide)


def readout_matching(real: Tensor, syn: Tensor, ridge: float) -> Tensor:
    """L_RR [classes]: squared error on real embeddings of the ridge regression fitted to synthetic embeddings.

    real [classes, R, D], syn [classes, S, D], with all classes of the data set. Targets are one-hot vectors minus their
    mean. Embeddings are centred and scaled with the statistics of the real ones. `ridge` is relative to the mean
    diagonal of the synthetic kernel. Unlike matched means, this term depends on differences between classes. If the
    regression can't be solved in float32, the term is NaN.

    The term is not of the DDM paper. Source: RFAD (Loo et al., NeurIPS 2022), of the family of KIP (Nguyen et al.,
    2021) and FRePo (Zhou et al., 2022).
    """
    classes, S, D = syn.shape
    R = real.shape[1]
    centre = real.mean((0, 1))
    scale = (real - centre).square().mean().sqrt() + 1e-12
    r, s = (((x - centre) / scale).flatten(0, 1) for x in (real, syn))
    targets = torch.eye(classes, device=syn.device, dtype=syn.dtype) - 1 / classes
    K = s @ s.T / D  # [classes * S, classes * S]
    diagonal = K.detach().flatten()[:: len(K) + 1]  # K.diagonal() makes torch's compiler print a warning
    ridge_term = ridge * diagonal.mean() * torch.eye(len(K), device=K.device, dtype=K.dtype)
    # cholesky_ex does not raise, which would wait for the device. Where it fails, its factor may be finite, but is
    # wrong; the step notices NaN.
    factor, info = torch.linalg.cholesky_ex(K + ridge_term)
    weights = torch.cholesky_solve(targets.repeat_interleave(S, 0), factor)
    weights = torch.where(info == 0, weights, torch.nan)
    error = r @ s.T / D @ weights - targets.repeat_interleave(R, 0)  # [classes * R, classes]
    return error.square().sum(1).unflatten(0, (classes, R)).mean(1)
