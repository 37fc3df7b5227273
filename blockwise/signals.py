"""What ends a run from outside: signals, and the death of its launcher. Loads no torch: it is wanted first of all."""

import os
import signal
import threading
import time

# Beside Ctrl-C and kill: a terminal that closes, a scheduler's warning before its limit, a limit on processor time
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class StopRequest:
    """True once one of these signals came. While it lives none of them interrupts anything, a save least of all."""

    def __init__(self):
        self.signal, self.before = None, {}
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
                self.before[number] = signal.signal(number, self._note)

    def release(self):
        """From here on signals do what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.signal = signal.Signals(number).name

    @staticmethod
    def ignore_more():
        """For the very end: Python drops its handlers before the process is gone, and a late signal would kill it."""
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)

    def __bool__(self):
        return self.signal is not None


def end_with_launcher():
    """Leave at once when torchrun, or the study that started it (LAUNCHED_BY, a process id), is gone.

    Orphans would hold the run's lock and wait for each other.
    """
    launcher, study = os.getppid(), int(os.environ.get("LAUNCHED_BY", 0))

    def watch():
        while os.getppid() == launcher and (not study or exists(study)):
            time.sleep(0.5)
        os._exit(1)

    if "RANK" in os.environ or study:
        threading.Thread(target=watch, daemon=True).start()


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
