"""The names that code of the DC/DSA/DM family imports from its utils, with the published meaning.

Most live in our modules and are only handed on here; what nothing of ours uses is defined below.
"""

from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor

from ddm.augment import DiffAugment, ParamDiffAug, augment, get_daparam
from ddm.data.data import TensorDataset, get_dataset
from ddm.errors import UserError, lookup
from ddm.runs.files import get_time
from ddm.networks import get_network
from ddm.evaluation.synsets import CondensedDataset
from ddm.evaluation.training import epoch, evaluate_synset, get_eval_pool

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

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def get_loops(ipc: int) -> tuple[int, int]:
    """Outer and inner loop counts of Dataset Condensation for an ipc; raises UserError where none is published."""
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
            # conv [out, in, h, w] and layernorm [C, h, w]: a row an output or channel; linear [out, in] is that already
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
