"""SIGTERM and Ctrl-C while training: a request to stop after the step under way."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from jaxmetric.sharding import num_processes


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """A function that says which signal has asked to stop; 0: none has.

    The same signal a second time acts as if this were not there. Outside of the main thread, which alone
    gets signals, and in a job of several processes, where jax announces SIGTERM to all of them, nothing
    is caught.
    """
    received, before = [0], {}

    def note(signum, frame) -> None:
        del frame
        received[0] = signum
        signal.signal(signum, before[signum])

    caught = (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is threading.main_thread() and num_processes() == 1:
        before |= {signum: signal.signal(signum, note) for signum in caught}
    try:
        yield lambda: received[0]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
