"""What ends a run from outside: signals, and the death of its launcher. Loads no torch: it is wanted first of all."""

import os
import signal
import threading
import time


class StopRequest:
    """True once SIGTERM or SIGINT came. While it lives neither signal interrupts anything, a save least of all."""

    def __init__(self):
        self.signal = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, frame):
        self.signal = signal.Signals(number).name

    @staticmethod
    def ignore_more():
        """For the very end: Python drops its handlers before the process is gone, and a late signal would kill it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def __bool__(self):
        return self.signal is not None


def end_with_launcher():
    """Under torchrun, leave at once when it is gone: orphans would hold the run's lock and wait for each other."""
    launcher = os.getppid()

    def watch():
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    if "RANK" in os.environ:
        threading.Thread(target=watch, daemon=True).start()
