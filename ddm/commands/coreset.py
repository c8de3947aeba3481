"""Coresets: real images chosen by a rule, evaluated as condensed sets are; the baselines of the comparison.

    python coreset.py --method herding --ipc 10

Herding, k-center and k-means choose in the embedding of a network trained on all the real images, the difficulty
scores by what that network found hard. `full` is the whole training set, the ceiling.
"""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from ddm import flags
from ddm.methods import selection
from ddm import speed
from ddm.evaluation import training
from ddm.data.data import ImageData, Normalised, subset
from ddm.errors import UserError
from ddm.runs.experiments import Experiments, carry_out, images_per_class
from ddm.networks import empty_network


class Run(Experiments):
    """Experiments that select."""

    def __init__(self, prepared: None, *common: Any):
        super().__init__(*common)
        self.kind = self.args.method
        self.found: selection.Proxy | None = None

    def begin(self) -> None:
        if self.args.method not in ("random", "full") and len(self.sets) < self.args.num_exp:
            self.found = selection.proxy(self.data, self.args, self.identity["data"])

    def one_experiment(self, experiment: int) -> Tensor:
        data, args = self.data, self.args
        if args.method == "full":  # too large to be kept: the set's file has no images
            self.evaluate_finished(torch.empty(0), experiment)
            return torch.empty(0, data.channel, *data.im_size)
        images = data.batch(selection.select(data, args, experiment, self.found))
        self.files.save_grid(data.denormalise(images), args.counts, experiment, 0)
        self.evaluate(images, self.kind, experiment, 0)
        return images

    def evaluate_finished(self, images: Tensor, experiment: int) -> None:
        if self.args.method != "full":
            return super().evaluate_finished(images, experiment)
        data = self.data
        own = selection.subset(data, self.args, experiment)
        of_set, self.labels = self.labels, data.y_train[own.to(data.y_train.device)]
        self.evaluate(Normalised(data, subset(data.x_train, own.to(data.x_train.device))), self.kind, experiment, 0)
        self.labels = of_set


def make_parser() -> flags.Parser:
    parser = flags.common_parser(__doc__, model="ConvNet")
    add = parser.method.add_argument
    add("--method", choices=selection.methods(), default="random", help="how images are chosen")
    add("--order", choices=("easiest", "hardest"), default="hardest", help="which images a difficulty score keeps")
    add("--proxy_epochs", type=flags.at_least(1), default=20, help="training of the network that methods look at")
    add(
        "--proxy_cache",
        type=flags.a_path,
        default=None,
        help="folder that keeps that network; unset: proxies in --data_path",
    )
    add("--subset_size", type=flags.at_least(0), default=0, help="of full: so many random images; 0: all")
    return parser


def settle(args: Namespace) -> None:
    """Fill in what the frame shared with the recipes reads."""
    args.Iteration = 0
    if args.method == "full":
        args.ipc = 0
    elif args.subset_size:
        raise UserError(f"--subset_size is for --method full; --method {args.method} takes --ipc images a class")


def prepare(data: ImageData, args: Namespace) -> None:
    args.counts = images_per_class(data, args.ipc)
    selection.cache_folder(args)
    if args.subset_size > len(data.x_train):
        raise UserError(f"--subset_size {args.subset_size}: {data.name} has {len(data.x_train)} training images")
    for model in {args.model, *training.get_eval_pool(args.eval_mode, args.model)}:
        empty_network(model, data.channel, data.num_classes, data.im_size, "meta")
    images = (args.epoch_eval_train + 1) * (sum(args.counts) or args.subset_size or len(data.x_train))
    speed.choose(args, 3 * images * data.im_size[0] * data.im_size[1])


def run(args: Namespace) -> None:
    settle(args)
    carry_out(args, "coreset", lambda data: prepare(data, args), Run)


if __name__ == "__main__":
    flags.main(make_parser(), run)
