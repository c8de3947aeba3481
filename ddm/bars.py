"""Progress bars with the remaining time, which also read well in a log file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30.0  # seconds between two lines in a log file


class Lines:
    """A stream without a terminal: each state of a bar becomes a line instead of overwriting the last one."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def bar(iterable: Iterable | None = None, show: bool = True, **options: Any) -> tqdm:
    """tqdm on stderr; `options` are tqdm's. In a log file it writes a line every 30 seconds, and none before."""
    if sys.stderr.isatty():
        return tqdm(iterable, disable=not show, dynamic_ncols=True, **options)
    pace = {"mininterval": LOG_SECONDS, "delay": LOG_SECONDS, "miniters": 1}
    text = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    # Position 0: a bar within another one would move the cursor.
    return tqdm(iterable, disable=not show, file=Lines(sys.stderr), position=0, bar_format=text, **pace, **options)
