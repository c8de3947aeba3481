"""Whether and how a command goes on from the checkpoint in its save_path."""

import contextlib
import sys
from argparse import Namespace
from pathlib import Path

from ddm.runs import checkpoint
from ddm.data.data import ImageData
from ddm.errors import UserError
from ddm.runs.files import versions

# Arguments that leave the result as it is, but for rounding.
FREE = {"device", "data_path", "save_path", "resume", "checkpoint_every", "on_nonfinite", "class_chunk"}
FREE |= {"proxy_cache", "like", "preset", "tensorboard"}  # what they set is compared, flag by flag
MAY_GROW = {"num_exp", "num_eval"}


def find(args: Namespace, requested: dict) -> dict | None:
    """The state to go on from, None for a fresh start, as --resume asks; fits args to it.

    `requested` are the arguments before anything was chosen. Raises UserError where the checkpoint is another
    command's, or damaged, or missing where it must be there.
    """
    folder = Path(args.save_path)
    if args.resume == "never":
        if _entries(folder):
            raise UserError(f"--resume never: {args.save_path!r} is not empty; name another --save_path")
        return None
    state, problems = checkpoint.newest(folder)
    for problem in problems:
        print(f"warning: {problem}; going on from {checkpoint.PREVIOUS}", file=sys.stderr)
    if state is None:
        if args.resume == "must":
            raise UserError(f"--resume must: no {checkpoint.NAME} in {args.save_path!r}")
        results = [name for name in _entries(folder) if name == "results.json" or name.startswith("res_")]
        if results:
            raise UserError(
                f"{args.save_path!r} has {results[0]} of another run, and no {checkpoint.NAME} to go on from: "
                "name another --save_path"
            )
        return None
    accept(state, requested)
    for name, value in state["chosen"].items():  # where left open, what was chosen for the first part holds
        if requested[name] == state["requested"][name]:
            setattr(args, name, value)
    return state


def _entries(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(path.name for path in folder.iterdir())
    return []


def accept(state: dict, requested: dict) -> None:
    """Raise UserError where arguments that change the result differ from the checkpoint's; say which others do."""
    before = state["requested"]
    differing = {k for k in before.keys() | requested.keys() if before.get(k) != requested.get(k)}
    # A flag that is newer than the checkpoint, and off, leaves all as it was.
    differing -= {k for k in differing if k not in before and requested[k] is False}
    grown = {k for k in MAY_GROW & differing if requested[k] > before[k]}
    refused = sorted(differing - FREE - grown, key=lambda name: (name != "recipe", name))  # what matters most first
    if refused:
        listed = ", ".join(f"--{k} {before.get(k)} there, {requested.get(k)} now" for k in refused[:4])
        more = f" and {len(refused) - 4} more" if len(refused) > 4 else ""
        raise UserError(
            f"the checkpoint is of other arguments ({listed}{more}): repeat them, or name another --save_path"
        )
    for k in sorted(differing - {"resume", "save_path"}):
        print(f"note: --{k} was {before.get(k)}, is {requested.get(k)}; the result stays comparable", file=sys.stderr)
    changed = [k for k, v in versions().items() if state["versions"].get(k) != v]
    if changed:
        print(f"note: other versions than before of {', '.join(changed)}: last digits may differ", file=sys.stderr)


def check_data(state: dict | None, digest: str, data: ImageData, counts: list[int]) -> None:
    """Raise UserError where the data are not those of the checkpoint, or its images not like them."""
    if state is None:
        return
    if state["data"] != digest:
        raise UserError(f"the {data.name} files are not the data that the checkpoint was made with: restore them")
    if state["counts"] != counts:
        raise UserError("the .json file of --ipc is not what it was for the checkpoint: restore it")
    shape = (sum(counts), data.channel, *data.im_size)
    for images in (state["images"], state["velocity"], *state["sets"]):
        if images is not None and images.shape != shape:
            raise UserError(f"the checkpoint's images are {list(images.shape)}, {data.name} needs {list(shape)}")
