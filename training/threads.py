"""Work over many pictures: threads (Pillow and zlib release the GIL), results in order, a progress bar."""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_order(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """`map(function, items)` on `workers` threads, a few items ahead of the consumer; 0 or 1 worker uses none."""
    if workers <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        iterator = iter(items)
        ahead: deque[Future[B]] = deque(pool.submit(function, i) for i in itertools.islice(iterator, 4 * workers))
        try:
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(function, i) for i in itertools.islice(iterator, 1))
                yield result
        finally:  # the consumer stopped early, or Ctrl-C
            pool.shutdown(cancel_futures=True)


def progress(total: int | None, description: str) -> Any:
    """A tqdm bar on standard error that counts pictures; calm where standard error is a file."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=description, unit=" pictures", mininterval=interval, file=sys.stderr)
