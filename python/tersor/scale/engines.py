"""Engines that run independent tasks: in this process, in several, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from tersor.errors import TersorError

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_over(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, engine: str = "here", workers: int = 2
) -> Iterator[Result]:
    """``function`` of every task, in the order of the tasks.

    Args:
        function: a module's own function; workers import it.
        engine: a name in ``ENGINES``: ``"here"``, ``"processes"``, or ``"ray"``, which uses the cluster that
            ``ray.init`` joined, or starts a local one.
        workers: processes, or tasks that Ray may run at once; each computes with one thread.

    Raises:
        TersorError: an unknown engine, no Ray, fewer than one worker, or a worker that was killed.
        Exception: what ``function`` raised.
    """
    if engine not in ENGINES:
        raise TersorError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if workers < 1:
        raise TersorError(f"an engine needs at least one worker, got {workers}")
    return ENGINES[engine](function, list(tasks), workers)


def _here(function: Callable[[Any], Any], tasks: list[Any], workers: int) -> Iterator[Any]:
    return map(function, tasks)


def _processes(function: Callable[[Any], Any], tasks: list[Any], workers: int) -> Iterator[Any]:
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from pool.map(function, tasks)
        except BrokenProcessPool as error:
            raise TersorError("a worker process was killed; start again, finished layers are kept") from error


def _ray(function: Callable[[Any], Any], tasks: list[Any], workers: int) -> Iterator[Any]:
    ray = require_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        remote = ray.remote(num_cpus=1)(_one_thread(function))
        waiting: list[Any] = []
        for task in tasks:  # as many results are on their way as there are workers, so that none pile up
            if len(waiting) == workers:
                yield ray.get(waiting.pop(0))
            waiting.append(remote.remote(task))
        for result in waiting:
            yield ray.get(result)
    except ray.exceptions.WorkerCrashedError as error:
        raise TersorError("a Ray worker was killed; start again, finished layers are kept") from error
    finally:
        if started:
            ray.shutdown()


def require_ray() -> Any:
    """The module ray.

    Raises:
        TersorError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise TersorError("this needs Ray: pip install 'tersor[ray]'") from error
    return ray


def _one_thread(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(task: Any) -> Any:
        torch.set_num_threads(1)
        return function(task)

    return run


ENGINES: dict[str, Callable[[Callable[[Any], Any], list[Any], int], Iterator[Any]]] = {
    "here": _here,
    "processes": _processes,
    "ray": _ray,
}
"""Every known engine by its name."""
