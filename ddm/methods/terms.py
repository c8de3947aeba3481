"""The terms of the objective with the choices that they leave to the command line, for recipes to add up.

Every term is unweighted, [classes]. What a term reads of feature maps is in `reading`.
"""

import argparse
from argparse import Namespace

from torch import Tensor

from ddm import flags
from ddm.errors import UserError
from ddm.losses import (
    MOMENTS,
    gram_distance,
    intra_class_diversity,
    mean_gram,
    moments_distance,
    spread_matching,
)
from ddm.methods.matching import Features, Statistics

TAPS = ("published", "conv", "norm", "act", "pool")


def moments(real: Features, syn: Features, args: Namespace) -> Tensor:
    """L_MM under --style_stats and --style_scale."""
    relative = args.style_scale == "relative"
    return moments_distance(real.style["moments"], syn.style["moments"], args.style_stats, relative)


def grams(real: Features, syn: Features, args: Namespace) -> Tensor:
    """L_CM under --style_scale."""
    return gram_distance(real.style["mean_gram"], syn.style["mean_gram"], args.style_scale == "relative")


def kl(real: Features, syn: Features, args: Namespace) -> Tensor:
    k = own_neighbours(syn.embedding.shape[1]) if args.k is None else args.k
    return intra_class_diversity(syn.embedding, k)


def spread(real: Features, syn: Features, args: Namespace) -> Tensor:
    return spread_matching(real.embedding, syn.embedding)


ICD_FORMS = {"kl": kl, "spread": spread}


def diversity(real: Features, syn: Features, args: Namespace) -> Tensor:
    """L_ICD in the form of --icd_form."""
    return ICD_FORMS[args.icd_form](real, syn, args)


def reading(args: Namespace, mm: float = 0, cm: float = 0) -> Statistics:
    """What the style terms of these weights read of feature maps; a weight of 0 reads nothing."""
    statistics: Statistics = {}
    if mm:
        statistics["moments"] = MOMENTS[args.style_stats]
    if cm:
        statistics["mean_gram"] = mean_gram
    return statistics


def own_neighbours(ipc: int) -> int:
    """The paper's k of L_ICD: 0.2 * ipc, at least 1, at most ipc - 1 (0 at ipc 1, where the term is 0)."""
    return min(max(round(0.2 * ipc), 1), ipc - 1)


def neighbours(args: Namespace) -> int | None:
    """k of L_ICD as --k says, else the paper's; None where it differs from class to class."""
    if isinstance(args.ipc, str):  # as many as each class has: `kl` sees to it
        return args.k
    if args.k is None:
        return own_neighbours(args.ipc)
    if args.k >= args.ipc > 1 and args.icd_ratio and args.icd_form == "kl":
        raise UserError(f"--k {args.k}: an image has only {args.ipc - 1} others in its class at --ipc {args.ipc}")
    return args.k


def layer_numbers(text: str) -> str:
    """An argparse type: 'all', or layer numbers joined by commas."""
    parts = text.split(",")
    if text != "all" and (len(set(parts)) < len(parts) or not all(p.isdecimal() and len(p) < 4 for p in parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'all' nor different layer numbers such as 0,2")
    return text


def add_style_flags(parser: flags.Parser) -> None:
    add = parser.method.add_argument
    text = "where feature maps are read; published: the activations (AlexNet: poolings, ResNet18: stages)"
    add("--style_tap", choices=TAPS, default="published", help=text)
    add("--style_layers", type=layer_numbers, default="all", help="layers to read, from 0, such as 0,2; or all")
    text = "L_MM: moments of the batch-mean map, or the mean over images of their own moments (L_CM: always of images)"
    add("--style_stats", choices=tuple(MOMENTS), default="batch", help=text)
    text = "relative: each style term is divided by the squared magnitude of its real statistic, layer by layer"
    add("--style_scale", choices=("absolute", "relative"), default="absolute", help=text)
    text = "weight classes as the published scripts do by never resetting their sum (early classes count more)"
    add("--published_accumulator", **flags.SWITCH, help=text)


def add_diversity_flags(parser: flags.Parser) -> None:
    add = parser.method.add_argument
    text = "kl: from the nearest neighbours (unbounded); spread: deviations along the real principal directions"
    add("--icd_form", choices=tuple(ICD_FORMS), default="kl", help=text)
    add("--k", type=flags.at_least(1), default=None, help="nearest neighbours; unset: round(0.2 * ipc), 1 to ipc - 1")
