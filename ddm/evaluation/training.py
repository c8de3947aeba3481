"""How good is a small training set? Train fresh networks on it, test them on the whole test set.

The protocol is the one of DC/DSA/DM, to the letter: epochs 0 .. E of SGD (momentum 0.9, weight decay 5e-4) over
shuffled batches with DSA, a new optimizer with a tenth of the learning rate after epoch E // 2 + 1, and the
accuracy after the **last** epoch, never the best one. `python evaluate.py` scores saved sets by it.
"""

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ddm import rng
from ddm.augment import DiffAugment, augment
from ddm.data.data import Batches, ImageData, Normalised
from ddm.networks import empty_network, initialise
from ddm.speed import autocast, compiled, laid_out, laid_out_net

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
TEST_BATCH = 256

POOLS = {  # evaluation mode -> networks; S and SS follow the model and are answered by get_eval_pool
    "M": ["MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"],
    "B": ["ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"],
    "W": ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"],
    "D": ["ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"],
    "A": ["ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"],
    "P": ["ConvNetNP", "ConvNetMP", "ConvNetAP"],
    "N": ["ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"],
}
EVAL_MODES = ("S", "SS", *POOLS)


def get_eval_pool(eval_mode: str, model: str, model_eval: str | None = None) -> list[str]:
    """Names of the networks an evaluation mode trains.

    SS: the model itself; S: the same without its BatchNorm (too few images to measure statistics on); M, B, W, D,
    A, P, N: architectures, BatchNorm ones, widths, depths, activations, poolings, norms. Any other mode gives
    [model_eval], as published.
    """
    if eval_mode == "SS":
        return [model]
    if eval_mode == "S":
        return [model.split("BN")[0]]
    return list(POOLS.get(eval_mode, [model_eval]))


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    criterion: nn.Module,
    img: Tensor,
    lab: Tensor,
    precision: str = "fp32",
) -> Tensor:
    """One batch: [loss sum, correct] on the device, without a host sync; optimizer None only tests."""
    with torch.set_grad_enabled(optimizer is not None):
        with autocast(img.device, precision):
            output = net(img)
        output = output.float()
        loss = criterion(output, lab)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return torch.stack([loss.detach() * lab.shape[0], (output.argmax(1) == lab).sum()])


def epoch(
    mode: str,
    dataloader: Iterable[tuple[Tensor, Tensor]],
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    criterion: nn.Module,
    args: Namespace,
    aug: bool,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """One pass in mode 'train' or 'test': mean loss and accuracy in [0, 1].

    Reads args.device and, where `aug`, args.dsa with args.dsa_strategy and args.dsa_param, or args.dc_aug_param.
    Per-image augmentation is drawn from `generator` (CPU; None is torch's global one, as published).
    """
    net.train(mode == "train")
    precision = getattr(args, "precision", "fp32")  # of other code's args: none
    total, n = torch.zeros(2, device=args.device), 0
    for img, lab in dataloader:
        img, lab = img.to(args.device).float(), lab.to(args.device).long()
        if aug and args.dsa:
            img = DiffAugment(img, args.dsa_strategy, param=args.dsa_param, generator=generator)
        elif aug:
            img = augment(img, getattr(args, "dc_aug_param", None), device=args.device)
        img = laid_out(img, args)
        total += train_step(net, optimizer if mode == "train" else None, criterion, img, lab, precision)
        n += lab.shape[0]
    loss_sum, correct = total.tolist()
    return loss_sum / n, correct / n


def evaluate_synset(
    it_eval: int,
    net: nn.Module,
    images_train: Tensor | Normalised,
    labels_train: Tensor,
    testloader: Iterable[tuple[Tensor, Tensor]],
    args: Namespace,
    seed: int | None = None,
    log: Callable[[str], None] = print,
    curve: list[list[float]] | None = None,
) -> tuple[nn.Module, float, float]:
    """Train `net` on images [N, C, H, W] (normalised) and labels [N], test it: net, last train and test accuracy.

    Reads args.device, lr_net, epoch_eval_train, batch_train and what `epoch` reads. With a `seed`, batch order
    and augmentation are a function of it; without, they come from torch's global generator, as published. Each epoch's
    training loss and accuracy are added to `curve`.
    """
    net = net.to(args.device)
    labels_train = labels_train.to(args.device)
    if isinstance(images_train, Tensor):
        images_train = images_train.to(args.device)
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    trainloader = Batches(images_train, labels_train, args.batch_train, shuffle=True, generator=generator)
    criterion = nn.CrossEntropyLoss().to(args.device)
    E, lr = int(args.epoch_eval_train), float(args.lr_net)

    def fresh_optimizer(lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    start, optimizer = time.perf_counter(), fresh_optimizer(lr)
    for ep in range(E + 1):
        loss_train, acc_train = epoch(
            "train", trainloader, net, optimizer, criterion, args, aug=True, generator=generator
        )
        if curve is not None:
            curve.append([loss_train, acc_train])
        if ep == E // 2 + 1:
            optimizer = fresh_optimizer(lr / 10)  # momentum starts afresh
    seconds = time.perf_counter() - start
    _, acc_test = epoch("test", testloader, net, None, criterion, args, aug=False)
    log(
        f"Evaluate_{it_eval:02d}: last epoch {E}, {seconds:.0f} s, train loss {loss_train:.6f}, "
        f"train acc {acc_train:.4f}, test acc {acc_test:.4f}"
    )
    return net, acc_train, acc_test


class Evaluator:
    """Scores sets on one data set, with the fresh networks of args.eval_mode.

    A network of each architecture is built, and compiled, once; every evaluation initialises it afresh.
    """

    def __init__(self, data: ImageData, args: Namespace):
        self.data, self.args = data, args
        self.testloader = Batches(Normalised(data, data.x_test), data.y_test, TEST_BATCH)
        self.nets: dict[str, nn.Module] = {}

    def _net(self, model: str) -> nn.Module:
        if model not in self.nets:
            data, args = self.data, self.args
            net = empty_network(model, data.channel, data.num_classes, data.im_size, args.device)
            self.nets[model] = compiled(laid_out_net(net, args), args)
        return self.nets[model]

    def __call__(
        self, images: Tensor | Normalised, labels: Tensor, experiment: int, iteration: int, log: Callable[[str], None]
    ) -> dict[str, list[float]]:
        """Test accuracies in [0, 1] of args.num_eval fresh networks of each architecture.

        Every network's weights, batches and augmentation follow from (args.seed, experiment, iteration, its number),
        so that the results of different recipes are paired, network by network.
        """
        args = self.args
        return {
            model: [
                self.accuracy(model, images, labels, experiment, iteration, it_eval, log)
                for it_eval in range(args.num_eval)
            ]
            for model in get_eval_pool(args.eval_mode, args.model)
        }

    def accuracy(
        self,
        model: str,
        images: Tensor | Normalised,
        labels: Tensor,
        experiment: int,
        iteration: int,
        it_eval: int,
        log: Callable[[str], None],
        curve: list[list[float]] | None = None,
    ) -> float:
        """Test accuracy in [0, 1] of fresh network number it_eval of one architecture."""
        where = (self.args.seed, experiment, iteration, -1)
        net = initialise(self._net(model), rng.generator(*where, f"evaluation network {it_eval}"))
        seed = rng.seed_of(*where, f"evaluation training {it_eval}")
        *_, acc = evaluate_synset(it_eval, net, images, labels, self.testloader, self.args, seed, log, curve)
        return acc


def summary(accs: list[float]) -> dict[str, float | int | list[float]]:
    """Mean and (population, as published) deviation over networks, their number, and the accuracies, in [0, 1]."""
    return {"mean": statistics.fmean(accs), "std": statistics.pstdev(accs), "n": len(accs), "accuracies": accs}


def describe(accs: list[float]) -> str:
    """'mean 48.90 %, std 0.60, n 5'."""
    s = summary(accs)
    return f"mean {100 * s['mean']:.2f} %, std {100 * s['std']:.2f}, n {s['n']}"


def protocol(args: Namespace, data: ImageData) -> str:
    """The evaluation in one line, to stand beside its numbers."""
    E = args.epoch_eval_train
    drop = f" (a tenth after epoch {E // 2 + 1})" if E // 2 + 1 < E else ""
    pixels = "ZCA-whitened pixels, " if data.whitening is not None else ""
    augmentation = f"DSA {args.dsa_strategy}" if args.dsa else "no augmentation"
    return (
        f"fresh networks, {E + 1} epochs of SGD lr {args.lr_net}{drop}, "
        f"momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, batch {args.batch_train}, {args.precision}, "
        f"{augmentation}, {pixels}hard labels; "
        f"accuracy after the last epoch on all {len(data.x_test)} {args.eval_split} images"
    )
