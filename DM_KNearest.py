"""Intra-class diversity: L_MMD + icd_ratio * L_ICD (DDM, WACV 2025).

Content is the mean embedding (DM); diversity pushes every synthetic image away, in KL divergence, from the mean
of its k nearest neighbours of the same class.
"""

from argparse import Namespace

from torch import Tensor

from ddm import flags
from ddm.methods import terms
from ddm.methods.condense import condense
from ddm.losses import mean_matching
from ddm.methods.matching import Features, Statistics


def objective(real: Features, syn: Features, args: Namespace) -> dict[str, Tensor]:
    weighted = {"L_MMD": mean_matching(real.embedding, syn.embedding)}
    if args.icd_ratio:
        weighted["L_ICD"] = args.icd_ratio * terms.diversity(real, syn, args)
    return weighted


def make_parser() -> flags.Parser:
    parser = flags.recipe_parser(__doc__, model="ConvNet")
    add = parser.method.add_argument
    add("--icd_ratio", type=flags.non_negative, default=10.0, help="weight of L_ICD; 0 is plain DM")
    terms.add_diversity_flags(parser)
    return parser


def settle(args: Namespace) -> Statistics:
    """Set k; the objective reads no feature maps."""
    args.k = terms.neighbours(args)
    return {}


def run(args: Namespace) -> None:
    condense(args, objective, settle(args))


if __name__ == "__main__":
    flags.main(make_parser(), run)
