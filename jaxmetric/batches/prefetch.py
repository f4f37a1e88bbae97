"""Work done ahead, by a thread, so that who needs its results does not wait for them."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The items, in order, of which at most `depth` are made before they are asked for.

    What making one raises is raised where it is asked for. Closing the iterator ends the thread.
    """
    made, closed, end = queue.Queue(depth), threading.Event(), object()

    def put(item: object, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(end)
        except BaseException as error:
            put(end, error)

    thread = threading.Thread(target=work, name="jaxmetric prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        closed.set()
        thread.join()
