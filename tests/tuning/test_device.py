"""What a device does by itself, without a tuner."""

from __future__ import annotations

import os
import signal
import time

from attncc.tuning.device import _alarm


def test_the_alarm_ends_what_does_not_end() -> None:
    """The process goes, without its cooperation; what is done in time has no alarm behind it."""
    child = os.fork()
    if child == 0:
        with _alarm(600):
            pass
        if signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0):
            with _alarm(0.05):
                time.sleep(600)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
