"""The same work on many inputs, several at once: each worker is a process with its own share.

A worker has its share of the processor's threads and, of several GPUs, one.
"""

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection
from typing import Any, TypeVar

import torch

from skipalign.errors import RunError

_GPUS = "CUDA_VISIBLE_DEVICES"
_T = TypeVar("_T")


@contextmanager
def shared_threads(num_workers: int) -> Generator[None]:
    """Leave this process a worker's share of its threads, at least one, while open."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finished(
    work: Callable[..., _T], inputs: Sequence[tuple[Any, ...]], num_workers: int
) -> Iterator[_T]:
    """Do `work(*input)` for each input in `num_workers` processes; yield results as they come.

    Each has as many threads as this process (see `shared_threads`).

    The first error ends it: what has not begun does not begin, what has begun comes to its end.
    `work`, inputs and results travel between processes, so `work` is a function of a module.

    Raises:
        RunError: a worker was killed, as the system does when memory runs out.
        SkipalignError: whatever `work` raises.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads and GPU
    places = context.Queue()
    for number in range(num_workers):
        places.put(number)
    begin = (places, torch.get_num_threads(), _gpus())
    with ProcessPoolExecutor(num_workers, context, _begin, begin) as pool:
        # As many at once as there are workers: a pool's queue takes nothing back.
        left = iter(inputs)
        try:
            begun = {pool.submit(work, *each) for each in islice(left, num_workers)}
            while begun:
                done, begun = wait(begun, return_when=FIRST_COMPLETED)
                results = [each.result() for each in done]
                begun |= {pool.submit(work, *each) for each in islice(left, len(done))}
                yield from results
        except BrokenProcessPool:
            raise RunError(
                f"one of {num_workers} workers was killed, as the system does when memory runs "
                "out; start again with fewer (--jobs): what is finished is not done again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, by the names that the environment knows."""
    named = os.environ.get(_GPUS)
    if named is not None:
        return [each for each in named.split(",") if each]
    return [str(number) for number in range(torch.cuda.device_count())]


def _begin(places: Any, num_threads: int, gpus: list[str]) -> None:
    """Prepare a worker before its first work."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # they are meant for programmers, and the parent told them
    number = places.get()
    if gpus:
        os.environ[_GPUS] = gpus[number % len(gpus)]
    torch.set_num_threads(num_threads)


def _end_with_parent() -> None:
    """End this worker when the process that began it is gone, killed or not."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
