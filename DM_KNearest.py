"""Intra-class diversity: L_MMD + icd_ratio * L_ICD (DDM, WACV 2025).

Content is the mean embedding (DM); diversity pushes every synthetic image away, in KL divergence, from the mean
of its k nearest neighbours of the same class.
"""

from argparse import Namespace

from torch import Tensor

import flags
from condense import condense
from errors import UserError
from losses import intra_class_diversity, mean_matching
from matching import Features, Statistics


def objective(real: Features, syn: Features, args: Namespace) -> dict[str, Tensor]:
    terms = {"L_MMD": mean_matching(real.embedding, syn.embedding)}
    if args.icd_ratio:
        terms["L_ICD"] = args.icd_ratio * intra_class_diversity(syn.embedding, args.k)
    return terms


def neighbours(args: Namespace) -> int:
    """k of L_ICD: the paper's 0.2 * ipc, at least 1, at most ipc - 1 (0 at ipc 1, where the term is 0)."""
    if args.k is None:
        return min(max(round(0.2 * args.ipc), 1), args.ipc - 1)
    if args.k >= args.ipc > 1:
        raise UserError(f"--k {args.k}: an image has only {args.ipc - 1} others in its class at --ipc {args.ipc}")
    return args.k


def make_parser() -> flags.Parser:
    parser = flags.recipe_parser(__doc__, model="ConvNet")
    add = parser.method.add_argument
    add("--icd_ratio", type=flags.non_negative, default=10.0, help="weight of L_ICD; 0 is plain DM")
    add("--k", type=flags.at_least(1), default=None, help="nearest neighbours; unset: round(0.2 * ipc), 1 to ipc - 1")
    return parser


def settle(args: Namespace) -> Statistics:
    """Set k; the objective reads no feature maps."""
    args.k = neighbours(args)
    return {}


def run(args: Namespace) -> None:
    condense(args, objective, settle(args))


if __name__ == "__main__":
    flags.main(make_parser(), run)
