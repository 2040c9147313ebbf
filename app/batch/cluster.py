"""A job on a Ray cluster: the same stations, in the actors of Ray Data (extra `ray`).

The driver reads the rows, keeps the journal and writes the manifest; the actors write the outputs, so the output folder
must be one that all machines see. What a lost machine was doing is done again by another; a row that was told of twice
is counted once, and its file is the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import BadInput, MissingExtra, QuaverError
from .journal import Entry
from .rows import Row
from .run import Runner, sweep
from .work import Task, Work
from .workers import drive

__all__ = ["on_ray"]

TURNS = 4
"""Rows of a Ray task, times the slots: its slots run empty once at its end."""
ROWS = 65_536
"""Rows that the driver hands over at once."""


def on_ray(address: str | None = None, workers: int | None = None) -> Runner:
    """A runner on the cluster at `address`, or on one that is started on this machine for the job.

    Args:
        workers: actors; by default as many as the cluster has cores, more when it grows.

    Raises:
        MissingExtra: Ray is not installed. BadInput: there is no cluster at that address.
    """
    try:
        import pyarrow
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("--engine ray needs Ray Data: pip install 'quaver[ray]'") from None
    assert pyarrow

    def run(work: Work, out: Path, tasks: Iterable[Task]) -> Iterator[Entry]:
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, address)
        try:
            waiting = iter(tasks)
            while some := list(islice(waiting, ROWS)):
                yield from _through(ray, work, out.absolute(), some, workers)
        finally:
            if ours:
                ray.shutdown()
            sweep(out)  # what a lost machine had begun

    return run


def _connect(ray: Any, address: str | None) -> None:
    # Of a cluster that is started here; one that runs has settings of its own. Without the second, workers are so nice
    # that they stand still beside anything else.
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
        os.environ.setdefault(name, "0")
    place: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**place, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadInput(f"there is no Ray cluster at {address} ({str(error).splitlines()[0]})") from None


def _through(ray: Any, work: Work, out: Path, tasks: list[Task], workers: int | None) -> Iterator[Entry]:
    """Tasks through a pool of actors; entries as Ray tasks end."""
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    share = TURNS * work.width
    blocks = -(-len(tasks) // share)
    # Dealt out, not cut: each block gets long rows and short ones, so that blocks take about as long.
    dealt = [task for first in range(blocks) for task in tasks[first::blocks]]
    items = [{"task": json.dumps(asdict(task))} for task in dealt]
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    pool = ActorPoolStrategy(size=workers) if workers else ActorPoolStrategy(min_size=1, max_size=cores)
    done = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        _Actor,
        fn_constructor_kwargs={"work": work, "out": str(out)},
        batch_size=None,
        batch_format="numpy",
        compute=pool,
        num_cpus=1,
    )
    missing = {task.digest for task in tasks}
    for row in done.iter_rows():
        entry = json.loads(row["entry"])
        missing.discard(entry["digest"])
        yield entry
    if missing:
        raise QuaverError(f"the cluster lost {len(missing)} rows; the same command does them")


class _Actor:
    """A station in a Ray actor."""

    def __init__(self, work: Work, out: str) -> None:
        self.station = work.station(Path(out), 1)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for entries in drive(self.station, map(_task, batch["task"])):
            if entries:
                yield {"entry": [json.dumps(entry) for entry in entries]}


def _task(text: str) -> Task:
    content = json.loads(text)
    row = content.pop("row")
    row["extra"] = tuple((key, value) for key, value in row["extra"])
    return Task(Row(**row), **content)
