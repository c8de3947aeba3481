"""The condensed sets in sets/: they load, and its README says what they are."""

import pytest
import torch
from conftest import ROOT, command, parse

import ddm
from ddm.evaluation.protocol import describe

FILES = sorted((ROOT / "sets").glob("*.safetensors"))


def test_there_are_sets():
    assert len(FILES) >= 1


def card_commands(path, tmp_path):
    """The commands in the card of a set, as words."""
    command("export", path, "--to", "card", "--out", tmp_path / "card")
    lines = (tmp_path / "card" / "README.md").read_text().splitlines()
    return [line.split() for line in lines if line.startswith("    ")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_set_is_what_the_readme_says(path, tmp_path):
    pytest.importorskip("safetensors")
    train = ddm.load(path)
    args, size = train.metadata["args"], path.stat().st_size
    classes, stored = len(train.class_names), train.images if args["factor"] == 1 else train.stored
    assert torch.bincount(train.labels).tolist() == [args["ipc"] * args["factor"] ** 2] * classes
    assert train.images.isfinite().all() and len(stored) == args["ipc"] * classes
    assert (args["eval_split"], args["num_exp"]) == ("test", 1)
    assert size < 13e6 and "save_path" not in args and "data_path" not in args
    recipe = args["recipe"]
    program = ["ddm", "condense"] if recipe == "DM_DDM" else ["python", f"{recipe}.py"]
    (flags,) = [words[2:] for words in card_commands(path, tmp_path) if words[:2] == program]
    names = ("ipc", "Iteration", "factor", "lr_img", "rr_ratio", "networks", "clip_pixels", "batch_real")
    names = [name for name in names if name in args]
    again, like = parse(recipe, *flags), parse(recipe, "--like", path)
    assert {name: getattr(again, name) for name in names} == {name: args[name] for name in names}
    assert all(getattr(like, name) in (args[name], None) for name in names)  # None: the data will decide
    ((model, accs),) = train.accuracies.items()
    (row,) = [line for line in (ROOT / "sets" / "README.md").read_text().splitlines() if f"`{path.name}`" in line]
    assert f"{model}, {args['epoch_eval_train'] + 1:,} epochs: {describe(accs)}" in row
    assert f"| {args['dataset']}, {len(stored)} images |" in row and f"{args['Iteration']:,} iterations" in row
