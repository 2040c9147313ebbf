"""Ray: a local cluster of two nodes, one of which is killed in the middle of a job."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quaver.app.batch.cluster import _task, on_ray
from quaver.app.batch.rows import Row
from quaver.app.batch.run import run_job
from quaver.app.batch.work import Task

from .conftest import do, job_of, lines, table, tree

pytestmark = pytest.mark.batch


def test_a_task_survives_the_way_to_an_actor() -> None:
    from dataclasses import asdict

    task = Task(Row(3, "é", "Hi.", "low", speed=1.5, seed=7, extra=(("phonemes", "x"),)), "é.wav", 7, "ab" * 10)
    assert _task(json.dumps(asdict(task))) == task


@pytest.mark.long
def test_a_killed_node_loses_nothing_and_nothing_is_done_twice(
    tmp_path: Path, voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'quaver[ray]'")
    pytest.importorskip("pyarrow", reason="Ray Data needs pyarrow")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    source = table(tmp_path / "in.jsonl", 120)
    do(job_of(source, tmp_path / "one", voice))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    told: list[str] = []

    def kill_once(survey: Any, entry: Any) -> None:
        told.append(entry["id"])
        if len(told) == 12:
            cluster.remove_node(second, allow_graceful=False)

    try:
        assert len(ray.nodes()) == 2
        report = run_job(job_of(source, tmp_path / "two", voice), on_ray(workers=2), kill_once)
        assert sum(node["Alive"] for node in ray.nodes()) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (report.made, report.failed, report.missing) == (120, 0, 0)
    assert sorted(told) == sorted(f"row-{i}" for i in range(120))
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    assert len(lines(tmp_path / "two" / ".batch" / "journal.jsonl")) == 120
