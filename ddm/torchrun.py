"""The environment variables that torchrun sets. This module imports no torch: the command line needs it."""

import os


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without torchrun."""
    if "MASTER_ADDR" not in os.environ or "LOCAL_RANK" not in os.environ:  # some launchers set only a part
        return 0, 1
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def ranks_on_this_host() -> int:
    """The number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
