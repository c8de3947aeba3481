"""The complete objective of DDM (WACV 2025): content, style and intra-class diversity, every weight a setting.

    L_total = mmd_ratio * L_MMD + icd_ratio * L_ICD + mm_ratio * L_MM + cm_ratio * L_CM + rr_ratio * L_RR
        + ce_ratio * L_CE

In the paper's symbols: beta = icd_ratio, lambda * alpha = mm_ratio, lambda = cm_ratio. A weight of 0 removes a term and
its cost. With --weights balanced a weight is a norm of gradients (not of the DDM paper), see ddm.losses.balanced;
ce_ratio is always a factor, because L_CE falls to 0, where its gradient must vanish.

L_RR and L_CE are off by default and not of the DDM paper. Sources: L_RR: RFAD (Loo et al., NeurIPS 2022), of the family
of KIP (Nguyen et al., 2021) and FRePo (Zhou et al., 2022); L_CE: IDM (Zhao et al., CVPR 2023).
"""

from dataclasses import replace

from torch import Tensor

from ddm.errors import UserError
from ddm.losses import (
    MOMENTS,
    PER_CLASS,
    balanced,
    classification,
    gram_distance,
    intra_class_diversity,
    mean_gram,
    mean_matching,
    moments_distance,
    readout_matching,
    spread_matching,
)
from ddm.methods.matching import Features, Needs
from ddm.methods.settings import CompleteSettings, CondensingSettings, DiversitySettings, StyleSettings, WeightSettings

LARGE_BALANCED = 100  # a gradient this many times larger hides all others


def objective(real: Features, syn: Features, settings: CompleteSettings) -> dict[str, Tensor]:
    """The weighted terms of L_total by name, each [classes]; terms of weight 0 are left out.

    With --weights balanced they are the losses themselves, and their gradients carry the weights.
    """
    s, terms, syn_icd, syn_rr = settings, {}, syn, syn
    if s.weights == "balanced":  # the style terms are balanced at the feature maps, see `needs`
        copies = balanced(syn.embedding, (s.icd_ratio, s.rr_ratio), PER_CLASS)
        syn, syn_icd, syn_rr = (syn._replace(embedding=copy) for copy in copies)
    if s.mmd_ratio:
        terms["L_MMD"] = s.mmd_ratio * mean_matching(real.embedding, syn.embedding)
    if s.icd_ratio:
        terms["L_ICD"] = multiplier(s, s.icd_ratio) * diversity(real, syn_icd, s)  # beta
    if s.mm_ratio:
        terms["L_MM"] = multiplier(s, s.mm_ratio) * moments(real, syn, s)  # lambda * alpha
    if s.cm_ratio:
        terms["L_CM"] = multiplier(s, s.cm_ratio) * grams(real, syn, s)  # lambda
    if s.rr_ratio:  # not of the DDM paper
        terms["L_RR"] = multiplier(s, s.rr_ratio) * readout(real, syn_rr, s)
    if s.ce_ratio:  # not of the DDM paper
        terms["L_CE"] = s.ce_ratio * classification(syn.logits, syn.labels)
    return terms


def multiplier(settings: WeightSettings, weight: float) -> float:
    """The multiplier of a loss: its weight, or 1 if the weight is that of its gradient."""
    return 1.0 if settings.weights == "balanced" else weight


def needs(settings: CompleteSettings) -> Needs:
    """The feature maps that the objective reads, and whether it needs all classes in one pass."""
    needed = style_needs(settings, mm=settings.mm_ratio, cm=settings.cm_ratio)
    needed = needed._replace(all_classes=bool(settings.rr_ratio), gathers=True, logits=bool(settings.ce_ratio))
    if settings.icd_ratio and settings.icd_form == "spread":  # eigh waits for the device
        needed = needed._replace(captured=False)
    if settings.weights != "balanced":
        return needed
    return needed._replace(balance={"moments": settings.mm_ratio, "mean_gram": settings.cm_ratio})


def settle(settings: CompleteSettings) -> CompleteSettings:
    """Fill in k, which depends on ipc. Raises UserError if all weights are 0 or k is too large."""
    s = settings
    if s.weights == "balanced" and not s.mmd_ratio:
        raise UserError("--weights balanced measures every gradient by that of L_MMD: set --mmd_ratio above 0")
    weights = {name: getattr(s, name) for name in ("mm_ratio", "cm_ratio", "icd_ratio", "rr_ratio")}
    large = max(weights, key=weights.get)
    if s.weights == "balanced" and weights[large] > LARGE_BALANCED:
        raise UserError(
            f"--{large} {weights[large]:g} is a factor of a loss, but with --weights balanced it is a norm relative to "
            "other gradients: give a number near 1, or 0"
        )
    if s.weights == "balanced" and s.published_accumulator:
        raise UserError("--published_accumulator weights losses, which --weights balanced ignores: leave one out")
    alone = s.ipc == 1 and s.factor == 1  # its L_ICD is 0
    if not (s.mmd_ratio or s.mm_ratio or s.cm_ratio or (s.icd_ratio and not alone) or s.rr_ratio or s.ce_ratio):
        why = "L_ICD is 0 at --ipc 1 and every other" if s.icd_ratio else "every"
        raise UserError(f"{why} weight is 0, so there is nothing to match: set --mmd_ratio or another weight")
    return settle_neighbours(settings, settings.icd_ratio)


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


def readout(real: Features, syn: Features, settings: WeightSettings) -> Tensor:
    """L_RR [all classes]; the classes of other ranks are gathered. Not of the DDM paper."""
    return readout_matching(real.gather(real.embedding), syn.gather(syn.embedding), settings.rr_ridge)


def style_needs(settings: StyleSettings, mm: float = 0, cm: float = 0) -> Needs:
    """The feature maps that the style terms with weights `mm` and `cm` read; a weight of 0 reads none."""
    statistics = {}
    if mm:
        statistics["moments"] = MOMENTS[settings.style_stats]
    if cm:
        statistics["mean_gram"] = mean_gram
    layers = settings.style_layers
    layers = None if layers == "all" else tuple(int(number) for number in layers.split(","))
    return Needs(statistics, settings.style_tap, layers, accumulated=settings.published_accumulator, captured=True)


def neighbours_of(n: int) -> int:
    """The paper's k of L_ICD for n images per class: 0.2 * n, at least 1, at most n - 1 (0 at 1: the term is 0)."""
    return min(max(round(0.2 * n), 1), n - 1)


def settle_neighbours(settings: CondensingSettings, weight: float) -> CondensingSettings:
    """Fill in k of L_ICD; it stays None if ipc differs between classes. Raises UserError if k is too large."""
    if isinstance(settings.ipc, str) or settings.factor is None:  # both depend on the data
        return settings
    k, n = settings.k, settings.ipc * settings.factor**2
    if k is None:
        return replace(settings, k=neighbours_of(n)) if n > 1 else settings
    if k >= n > 1 and weight and settings.icd_form == "kl":
        ipc = f"--ipc {settings.ipc}" + (f" --factor {settings.factor}" if settings.factor > 1 else "")
        raise UserError(f"--k {k}: an image has only {n - 1} others in its class at {ipc}: lower --k")
    return settings
