"""The names that the DC/DM family imports, with the published meaning."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from ddm.errors import UserError
from utils import get_loops, get_time, match_loss


def test_a_script_of_the_family_runs_unchanged(data_path):
    script = Path(__file__).parent / "family_script.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(data_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and "classes 10" in done.stdout


def test_loops():
    assert get_loops(1) == (1, 1) and get_loops(10) == (10, 50) and get_loops(50) == (50, 10)
    with pytest.raises(UserError, match="7 ipc"):
        get_loops(7)
    assert get_time().startswith("[20")


def test_match_loss_equals_plain_loops():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (4,), (4, 2, 2), (5, 16), (5,)]
    real, syn = ([torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(2))
    ours = 0
    for r, s in zip(real, syn, strict=True):
        if r.dim() > 1:
            for a, b in zip(r.reshape(len(r), -1), s.reshape(len(s), -1), strict=True):
                ours += 1 - (a @ b / (a.norm() * b.norm() + 1e-6)).item()
    a, b = (torch.cat([g.flatten() for g in gs]) for gs in (real, syn))
    expected = {
        "ours": ours,
        "mse": (a - b).pow(2).sum().item(),
        "cos": 1 - (a @ b / (a.norm() * b.norm() + 1e-6)).item(),
    }
    for metric, value in expected.items():
        assert match_loss(syn, real, Namespace(dis_metric=metric, device="cpu")).item() == pytest.approx(value)
    with pytest.raises(UserError, match="'cos'"):
        match_loss(syn, real, Namespace(dis_metric="cosine", device="cpu"))
