"""The condensed sets in sets/: they load, and its README says what they are."""

import pytest
import torch
from conftest import ROOT

import ddm
from ddm.evaluation.protocol import describe

FILES = sorted((ROOT / "sets").glob("*.safetensors"))


def test_there_are_sets():
    assert len(FILES) >= 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_set_is_what_the_readme_says(path):
    pytest.importorskip("safetensors")
    train = ddm.load(path)
    args, size = train.metadata["args"], path.stat().st_size
    classes, stored = len(train.class_names), train.images if args["factor"] == 1 else train.stored
    assert torch.bincount(train.labels).tolist() == [args["ipc"] * args["factor"] ** 2] * classes
    assert train.images.isfinite().all() and len(stored) == args["ipc"] * classes
    assert (args["eval_split"], args["num_exp"]) == ("test", 1)
    assert size < 8e6 and "save_path" not in args and "data_path" not in args
    ((model, accs),) = train.accuracies.items()
    (row,) = [line for line in (ROOT / "sets" / "README.md").read_text().splitlines() if f"`{path.name}`" in line]
    assert f"{model}, {args['epoch_eval_train'] + 1:,} epochs: {describe(accs)}" in row
    assert f"| {args['dataset']}, {len(stored)} images |" in row and f"{args['Iteration']:,} iterations" in row
