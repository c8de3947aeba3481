"""SIGTERM and SIGINT (what Slurm and Ctrl-C send) end a run where it can go on later."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """The run was asked to stop by a signal; `status` is what to exit with: 128 + the signal's number.

    Not an Exception, so that no handler of what may go wrong in reading or compiling takes it for that.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class Interrupts:
    """Remembers the first signal, until `check` is called where stopping is safe; a second one exits at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._anywhere = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
        if self._anywhere:
            raise Stopped(signum)

    def check(self) -> None:
        """Raise Stopped, if a signal has come."""
        if self.received is not None:
            raise Stopped(self.received)

    @contextlib.contextmanager
    def anywhere(self) -> Iterator[None]:
        """Within, a signal raises Stopped wherever the program is: for work that will be done again from its start."""
        self.check()
        self._anywhere = True
        try:
            yield
        finally:
            self._anywhere = False

    @contextlib.contextmanager
    def installed(self) -> Iterator["Interrupts"]:
        """Within, signals come here; in a thread other than the main one, where Python has none, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
