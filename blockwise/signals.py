"""SIGTERM and SIGINT as a request to stop at the next safe point. Loads no torch: it is wanted first of all."""

import signal


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
