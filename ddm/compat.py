"""Functions for scripts of the DC/DSA/DM family, under the published names and with the published behaviour.

Only this module reads the `args` Namespace of such scripts.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import rotate as scipy_rotate
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ddm.augment import DiffAugment, ParamDiffAug
from ddm.data.images import ImageData, Normalised
from ddm.data.loading import load
from ddm.device import Machine
from ddm.errors import UserError, lookup
from ddm.evaluation import protocol, training
from ddm.evaluation.protocol import get_eval_pool
from ddm.evaluation.sets import CondensedDataset
from ddm.evaluation.settings import ProtocolSettings
from ddm.evaluation.training import Augmentation
from ddm.networks import get_network
from ddm.runs.folder import get_time

__all__ = [
    "CondensedDataset",
    "DiffAugment",
    "ParamDiffAug",
    "TensorDataset",
    "augment",
    "epoch",
    "evaluate_synset",
    "get_daparam",
    "get_dataset",
    "get_eval_pool",
    "get_loops",
    "get_network",
    "get_time",
    "match_loss",
]

# --- data ------------------------------------------------------------------------------------------------------


class TensorDataset(Dataset):
    """Images [N, C, H, W] and labels [N] as a torch Dataset."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images = images.detach().float()
        self.labels = labels.detach()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __len__(self) -> int:
        return self.images.shape[0]


class NormalisedDataset(Dataset):
    """A split of an ImageData as a torch Dataset of (normalised image [C, H, W], int label)."""

    def __init__(self, data: ImageData, images: Tensor, labels: Tensor):
        self.data, self.images, self.labels = data, images, labels
        self.classes, self.targets = data.class_names, labels.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data.normalise(self.images[index]), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def get_dataset(dataset: str, data_path: str) -> tuple:
    """The published 9-tuple: channel, im_size, num_classes, class_names, mean, std, dst_train, dst_test, testloader.

    Raises UserError as `ddm.data.loading.load` does.
    """
    data = load(dataset, data_path)
    dst_train = NormalisedDataset(data, data.x_train, data.y_train)
    dst_test = NormalisedDataset(data, data.x_test, data.y_test)
    testloader = DataLoader(dst_test, batch_size=256, shuffle=False, num_workers=0)
    constants = data.class_names, data.mean, data.std
    return data.channel, data.im_size, data.num_classes, *constants, dst_train, dst_test, testloader


# --- evaluation --------------------------------------------------------------------------------------------------


def _augmentation(args: Namespace) -> Augmentation:
    """DSA if args.dsa, else the augmentation of Dataset Condensation (DC)."""
    if args.dsa:
        return lambda img, generator: DiffAugment(img, args.dsa_strategy, param=args.dsa_param, generator=generator)
    return lambda img, generator: augment(img, getattr(args, "dc_aug_param", None), device=args.device)


def epoch(
    mode: str,
    dataloader: Iterable[tuple[Tensor, Tensor]],
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    criterion: nn.Module,
    args: Namespace,
    aug: bool,
) -> tuple[float, float]:
    """One pass in mode 'train' or 'test': mean loss and accuracy in [0, 1].

    Reads args.device. If `aug`, it also reads args.dsa with args.dsa_strategy and args.dsa_param, or args.dc_aug_param.
    DSA is drawn from torch's global generator, as published.
    """
    net.train(mode == "train")
    machine, augmentation = Machine(str(args.device)), _augmentation(args) if aug else None
    optimizer = optimizer if mode == "train" else None
    loss, accuracy = training.means(*training.one_epoch(net, dataloader, optimizer, criterion, machine, augmentation))
    return loss, accuracy


def evaluate_synset(
    it_eval: int,
    net: nn.Module,
    images_train: Tensor | Normalised,
    labels_train: Tensor,
    testloader: Iterable[tuple[Tensor, Tensor]],
    args: Namespace,
    seed: int | None = None,
    log: Callable[[str], None] = print,
) -> tuple[nn.Module, float, float]:
    """Train `net` on images [N, C, H, W] (normalised) and labels [N] and test it: net, last train and test accuracy.

    Reads args.device, lr_net, epoch_eval_train, batch_train and the arguments that `epoch` reads. `seed` determines
    batch order and augmentation; None: torch's global generator does, as published.
    """
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    machine, E = Machine(str(args.device)), int(args.epoch_eval_train)
    settings = ProtocolSettings(epoch_eval_train=E, lr_net=float(args.lr_net), batch_train=int(args.batch_train))
    net, start = net.to(args.device), time.perf_counter()
    points = training.train(net, images_train, labels_train, settings, machine, _augmentation(args), generator)
    loss, acc_train = points[-1]
    seconds = time.perf_counter() - start
    acc_test = training.test(net, testloader, machine)
    log(protocol.report_line(it_eval, E, seconds, loss, acc_train, acc_test))
    return net, acc_train, acc_test


# --- Dataset Condensation (Zhao et al., ICLR 2021): loops, gradient matching, augmentation -------------------------

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def get_loops(ipc: int) -> tuple[int, int]:
    """The outer and inner loop counts of DC for an ipc; raises UserError if none are published."""
    if ipc not in LOOPS:
        raise UserError(
            f"loop hyper-parameters are not defined for {ipc} ipc: choose from {', '.join(map(str, LOOPS))}"
        )
    return LOOPS[ipc]


def _cosine_by_output(gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor]) -> Tensor:
    """1 - cosine, summed over the output units of every layer; vectors (biases, norm weights) don't count."""
    total = gw_real[0].new_zeros(())
    for syn, real in zip(gw_syn, gw_real, strict=True):
        if real.dim() > 1:
            # conv [out, in, h, w], layernorm [C, h, w], linear [out, in]: one row per output or channel
            total = total + _one_minus_cosine(syn.flatten(1), real.flatten(1)).sum()
    return total


def _squared_error(gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor]) -> Tensor:
    return (_joined(gw_syn) - _joined(gw_real)).square().sum()


def _cosine(gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor]) -> Tensor:
    return _one_minus_cosine(_joined(gw_syn), _joined(gw_real))


def _joined(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


def _one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-6)


METRICS = {"ours": _cosine_by_output, "mse": _squared_error, "cos": _cosine}


def match_loss(gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor], args: Namespace) -> Tensor:
    """Distance of two lists of parameter gradients under args.dis_metric: 'ours', 'mse' or 'cos' (DC, eq. 10)."""
    return lookup(METRICS, args.dis_metric, "dis_metric")(gw_syn, gw_real)


def _dc_crop(image: np.ndarray, p: dict, fill: np.ndarray) -> np.ndarray:
    pad, (channel, h, w) = p["crop"], image.shape
    padded = np.empty((channel, h + 2 * pad, w + 2 * pad), image.dtype)
    padded[:] = fill[:, None, None]
    padded[:, pad : pad + h, pad : pad + w] = image
    r, c = np.random.randint(0, 2 * pad, 2)  # noqa: NPY002 - callers seed numpy's global generator, as published
    return padded[:, r : r + h, c : c + w]


def _dc_scale(image: np.ndarray, p: dict, fill: np.ndarray) -> np.ndarray:
    size = image.shape[1:]
    ratios = np.random.uniform(1 - p["scale"], 1 + p["scale"], 2)  # noqa: NPY002 - as above
    new = [int(ratio * side) for ratio, side in zip(ratios, size, strict=True)]
    resized = F.interpolate(torch.from_numpy(image)[None], new)[0].numpy()
    return _centred(resized, size)


def _dc_rotate(image: np.ndarray, p: dict, fill: np.ndarray) -> np.ndarray:
    angle = np.random.randint(-p["rotate"], p["rotate"])  # noqa: NPY002 - as above
    return _centred(scipy_rotate(image, angle=angle, axes=(-2, -1), cval=fill.mean()), image.shape[1:])


def _dc_noise(image: np.ndarray, p: dict, fill: np.ndarray) -> np.ndarray:
    return image + p["noise"] * torch.randn(image.shape).numpy()


def _centred(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad with 0 to at least `size`, then cut the centre out."""
    before = [max(0, side - have) // 2 for side, have in zip(size, image.shape[1:], strict=True)]
    after = [max(0, side - have - b) for side, have, b in zip(size, image.shape[1:], before, strict=True)]
    image = np.pad(image, ((0, 0), (before[0], after[0]), (before[1], after[1])))
    r, c = ((have - side) // 2 for side, have in zip(size, image.shape[1:], strict=True))
    return image[:, r : r + size[0], c : c + size[1]]


DC_OPERATIONS = {"crop": _dc_crop, "scale": _dc_scale, "rotate": _dc_rotate, "noise": _dc_noise}


def augment(images: Tensor, dc_aug_param: dict | None, device: str | torch.device) -> Tensor:
    """Apply to each image [N, C, H, W] one operation of dc_aug_param['strategy'], drawn from numpy's global generator.

    `dc_aug_param` is the result of `get_daparam`; None or strategy 'none' returns the images unchanged. Source: DC.
    """
    if dc_aug_param is None or dc_aug_param["strategy"] == "none":
        return images
    operations = [lookup(DC_OPERATIONS, name, "DC augmentation") for name in dc_aug_param["strategy"].split("_")]
    fill = images.detach().mean((0, 2, 3)).cpu().numpy()  # channel means over the batch
    out = []
    for image in images.detach().cpu().numpy():
        operation = operations[np.random.randint(len(operations))]  # noqa: NPY002 - as above
        out.append(torch.from_numpy(np.ascontiguousarray(operation(image, dc_aug_param, fill))))
    return torch.stack(out).to(device=device, dtype=images.dtype)


def get_daparam(dataset: str, model: str, model_eval: str, ipc: int) -> dict:
    """DC's augmentation for a data set and an evaluation network, as in the published function."""
    strategy = "crop_scale_rotate" if dataset == "MNIST" else "none"
    if model_eval == "ConvNetBN":  # augmentation makes training with BatchNorm on few images easier
        strategy = "crop_noise"
    return {"crop": 4, "scale": 0.2, "rotate": 45, "noise": 0.001, "strategy": strategy}
