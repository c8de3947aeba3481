"""Style matching by channel moments: L_MMD + style_ratio * L_MM (DDM, WACV 2025).

Content is the mean embedding (DM); style is the mean and deviation of every channel of the batch-mean feature
map, at every tap.
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
    if args.style_ratio:
        weighted["L_MM"] = args.style_ratio * terms.moments(real, syn, args)
    return weighted


def make_parser() -> flags.Parser:
    parser = flags.recipe_parser(__doc__, model="ConvNet_gram")
    add = parser.method.add_argument
    add("--style_ratio", type=flags.non_negative, default=10000.0, help="weight of L_MM; 0 is plain DM")
    terms.add_style_flags(parser)
    return parser


def settle(args: Namespace) -> Statistics:
    """What the objective reads of feature maps."""
    return terms.reading(args, mm=args.style_ratio)


def run(args: Namespace) -> None:
    condense(args, objective, settle(args))


if __name__ == "__main__":
    flags.main(make_parser(), run)
