"""Work spread over threads that each run torch on one core.

For pieces that fit into a core's cache, torch's own threads wait for one another longer than they
work, the more so on a busy machine. Numpy and torch release the interpreter while they compute.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``function(item)`` for every item, in order, in as many threads as torch uses.

    Results are computed a few ahead of the one that is asked for, so few exist at a time. Gradients
    are not recorded.
    """
    function = torch.no_grad()(function)
    count = torch.get_num_threads()
    if count == 1:
        yield from map(function, items)
        return
    pool = _pool(count)
    ahead: deque[Future[Result]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(count, thread_name_prefix="one-core")
    all_started = threading.Barrier(count)

    def start() -> None:
        torch.get_num_threads()  # torch would set the default at a thread's first operation
        torch.set_num_threads(1)
        all_started.wait()

    for started in [pool.submit(start) for _ in range(count)]:
        started.result()
    torch.set_num_threads(count)  # each start() has also set the default of threads to come
    return pool
