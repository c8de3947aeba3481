"""The complete objective of DDM (WACV 2025): content, style and intra-class diversity, every weight a setting.

    L_total = mmd_ratio * L_MMD + icd_ratio * L_ICD + mm_ratio * L_MM + cm_ratio * L_CM + rr_ratio * L_RR

In the paper's symbols: beta = icd_ratio, lambda * alpha = mm_ratio, lambda = cm_ratio. A weight of 0 removes a term and
its cost. L_RR is off by default and not of the DDM paper. Its source is RFAD (Loo et al., NeurIPS 2022), of the family
of KIP (Nguyen et al., 2021) and FRePo (Zhou et al., 2022).
"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from ddm.errors import UserError
from ddm.losses import (
    MOMENTS,
    gram_distance,
    intra_class_diversity,
    mean_gram,
    mean_matching,
    moments_distance,
    readout_matching,
    spread_matching,
)
from ddm.methods.matching import Features, Needs
from ddm.methods.settings import CompleteSettings, CondensingSettings, DiversitySettings, StyleSettings

RR_RATIOS = {1: 1000.0, 10: 30.0, 50: 5.0}  # by ipc, chosen on CIFAR10's validation split


def objective(real: Features, syn: Features, settings: CompleteSettings) -> dict[str, Tensor]:
    """The weighted terms of L_total by name, each [classes]; terms of weight 0 are left out."""
    s, weighted = settings, {}
    if s.mmd_ratio:
        weighted["L_MMD"] = s.mmd_ratio * mean_matching(real.embedding, syn.embedding)
    if s.icd_ratio:
        weighted["L_ICD"] = s.icd_ratio * diversity(real, syn, s)  # beta
    if s.mm_ratio:
        weighted["L_MM"] = s.mm_ratio * moments(real, syn, s)  # lambda * alpha
    if s.cm_ratio:
        weighted["L_CM"] = s.cm_ratio * grams(real, syn, s)  # lambda
    if s.rr_ratio:  # not of the DDM paper
        weighted["L_RR"] = s.rr_ratio * readout_matching(real.embedding, syn.embedding, s.rr_ridge)
    return weighted


def needs(settings: CompleteSettings) -> Needs:
    """The feature maps that the objective reads, and whether it needs all classes in one pass."""
    needed = style_needs(settings, mm=settings.mm_ratio, cm=settings.cm_ratio)
    return needed._replace(all_classes=bool(settings.rr_ratio))


def settle(settings: CompleteSettings) -> CompleteSettings:
    """Fill in rr_ratio and k, which depend on ipc. Raises UserError if all weights are 0 or k is too large."""
    if settings.rr_ratio is None:
        if isinstance(settings.ipc, str):
            raise UserError(
                f"--preset best derives rr_ratio from a number --ipc, not from {settings.ipc}: give --rr_ratio"
            )
        settings = replace(settings, rr_ratio=rr_ratio_of(settings.ipc))
    s = settings
    alone = s.ipc == 1  # its L_ICD is 0
    if not (s.mmd_ratio or s.mm_ratio or s.cm_ratio or (s.icd_ratio and not alone) or s.rr_ratio):
        why = "L_ICD is 0 at --ipc 1 and every other" if s.icd_ratio else "every"
        raise UserError(f"{why} weight is 0, so there is nothing to match: set --mmd_ratio or another weight")
    return settle_neighbours(settings, settings.icd_ratio)


def rr_ratio_of(ipc: int) -> float:
    """The weight of L_RR in preset best: RR_RATIOS, interpolated linearly in log(ipc) and log(weight)."""
    weight = np.exp(np.interp(np.log(ipc), *(np.log(list(x)) for x in (RR_RATIOS.keys(), RR_RATIOS.values()))))
    return float(f"{weight:.3g}")


# --- terms configured by settings, unweighted, each [classes] -------------------------------------------------


def moments(real: Features, syn: Features, settings: StyleSettings) -> Tensor:
    """L_MM [classes] with --style_stats and --style_scale."""
    relative = settings.style_scale == "relative"
    return moments_distance(real.style["moments"], syn.style["moments"], settings.style_stats, relative)


def grams(real: Features, syn: Features, settings: StyleSettings) -> Tensor:
    """L_CM [classes] with --style_scale."""
    return gram_distance(real.style["mean_gram"], syn.style["mean_gram"], settings.style_scale == "relative")


def kl(real: Features, syn: Features, settings: DiversitySettings) -> Tensor:
    """L_ICD [classes] as published: divergence from the k nearest neighbours."""
    k = neighbours_of(syn.embedding.shape[1]) if settings.k is None else settings.k
    return intra_class_diversity(syn.embedding, k)


def spread(real: Features, syn: Features, settings: DiversitySettings) -> Tensor:
    """L_ICD [classes] bounded below, not of the DDM paper: deviations along the real principal directions."""
    return spread_matching(real.embedding, syn.embedding)


ICD_FORMS = {"kl": kl, "spread": spread}


def diversity(real: Features, syn: Features, settings: DiversitySettings) -> Tensor:
    """L_ICD [classes] in the form of --icd_form."""
    return ICD_FORMS[settings.icd_form](real, syn, settings)


def style_needs(settings: StyleSettings, mm: float = 0, cm: float = 0) -> Needs:
    """The feature maps that the style terms with weights `mm` and `cm` read; a weight of 0 reads none."""
    statistics = {}
    if mm:
        statistics["moments"] = MOMENTS[settings.style_stats]
    if cm:
        statistics["mean_gram"] = mean_gram
    layers = settings.style_layers
    layers = None if layers == "all" else tuple(int(number) for number in layers.split(","))
    return Needs(statistics, settings.style_tap, layers, accumulated=settings.published_accumulator)


def neighbours_of(ipc: int) -> int:
    """The paper's k of L_ICD: 0.2 * ipc, at least 1, at most ipc - 1 (0 at ipc 1, as the term is 0 there)."""
    return min(max(round(0.2 * ipc), 1), ipc - 1)


def settle_neighbours(settings: CondensingSettings, weight: float) -> CondensingSettings:
    """Fill in k of L_ICD; it stays None if ipc differs between classes. Raises UserError if k is too large."""
    if isinstance(settings.ipc, str):
        return settings
    k, ipc = settings.k, settings.ipc
    if k is None:
        return replace(settings, k=neighbours_of(ipc)) if ipc > 1 else settings
    if k >= ipc > 1 and weight and settings.icd_form == "kl":
        raise UserError(f"--k {k}: an image has only {ipc - 1} others in its class at --ipc {ipc}: lower --k")
    return settings
