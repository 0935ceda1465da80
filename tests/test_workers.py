"""workers.py: several processes do the same work on many inputs."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from skipalign import workers
from skipalign.errors import DataError, RunError


def square(number: int) -> tuple[int, int, int, str | None]:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    return number**2, os.getpid(), torch.get_num_threads(), gpu


def fail(number: int, killed: bool, begun: Path) -> int:
    (begun / str(number)).touch()
    if number == 1 and killed:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 1:
        raise DataError("row 1 is no row")
    time.sleep(0.2)  # so that the error comes first
    return number


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_all_is_done_by_workers_that_share_threads_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with workers.shared_threads(2):
        found = list(workers.finished(square, [(number,) for number in range(24)], 2))
    assert torch.get_num_threads() == 4
    assert sorted(value for value, *_ in found) == [number**2 for number in range(24)]
    used = {(pid, num_threads, gpu) for _, pid, num_threads, gpu in found}
    assert os.getpid() not in {pid for pid, *_ in used}
    assert len({pid for pid, *_ in used}) == len(used), "a worker keeps its GPU"
    assert {num_threads for _, num_threads, _ in used} == {2}
    assert {gpu for *_, gpu in used} <= {"3", "5"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("killed", "kind", "message"),
    [
        (False, DataError, "row 1 is no row"),
        (True, RunError, "one of 2 workers was killed, .* start again with fewer"),
    ],
)
def test_the_first_error_is_told_as_it_is_and_nothing_more_begins(killed, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        list(workers.finished(fail, [(number, killed, tmp_path) for number in range(9)], 2))
    assert {path.name for path in tmp_path.iterdir()} <= {"0", "1", "2"}


def sleep(folder: str, number: int) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def work_until_killed(folder: str) -> None:
    list(workers.finished(sleep, [(folder, number) for number in range(2)], 2))


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.long
def test_workers_end_when_the_process_that_began_them_is_killed(tmp_path: Path):
    parent = multiprocessing.get_context("spawn").Process(
        target=work_until_killed, args=(str(tmp_path),)
    )
    parent.start()
    until = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    assert all(is_running(pid) for pid in pids)
    parent.kill()
    while any(is_running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in pids)


def test_one_worker_has_all_threads():
    before = torch.get_num_threads()
    with workers.shared_threads(1):
        assert torch.get_num_threads() == before
    with workers.shared_threads(1000):
        assert torch.get_num_threads() == 1
