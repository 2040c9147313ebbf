"""The laws of a job: the same output whatever happens to it, and bad rows that stop nobody."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quaver.app.batch import run as run_module
from quaver.app.batch.journal import Journal
from quaver.app.batch.names import Names, inside
from quaver.app.batch.rows import Row
from quaver.app.batch.run import Job, checked, local, run_job
from quaver.app.batch.work import Task
from quaver.app.batch.workers import drive
from quaver.errors import BadInput, CorruptFile, QuaverError

from ..conftest import Run, assert_one_line
from ..engine_help import wait_until
from .conftest import TEXTS, do, job_of, lines, table, tree

pytestmark = pytest.mark.batch


# -- the output does not depend on how it was made ---------------------------------------------------------------------
def test_the_manifest_says_what_the_files_hold(tmp_path: Path, voice: Path) -> None:
    report = do(job_of(table(tmp_path / "in.jsonl", 8), tmp_path / "out", voice, timestamps=".json"))
    assert (report.rows, report.made, report.failed) == (8, 8, 0)
    rows = lines(tmp_path / "out" / "manifest.jsonl")
    assert [row["id"] for row in rows] == [f"row-{i}" for i in range(8)]
    for row in rows:
        pcm, rate = soundfile.read(tmp_path / "out" / row["path"], dtype="int16")
        assert (len(pcm), rate) == (row["samples"], row["sample_rate"])
        assert row["seconds"] == pytest.approx(len(pcm) / rate, abs=1e-3)
        assert row["pcm_sha256"] == __import__("hashlib").sha256(pcm.tobytes()).hexdigest()
        times = json.loads((tmp_path / "out" / row["path"]).with_suffix(".json").read_text())
        assert [[w["text"], w["start"], w["end"]] for w in times["words"]] == row["words"]
        assert row["words"][-1][2] <= row["seconds"] + 0.1
    assert len({row["seed"] for row in rows}) == 8


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(9)), voices=st.lists(st.sampled_from(["high", "low"]), min_size=9, max_size=9))
def test_a_row_sounds_the_same_in_any_company(
    tmp_path_factory: pytest.TempPathFactory, voice: Path, order: list[int], voices: list[str]
) -> None:
    """Whatever slot a row gets, whoever is in the others (law 3)."""
    out = tmp_path_factory.mktemp("out")
    source = table(out / "in.jsonl", 9)
    job = job_of(source, out, voice)
    tasks = [task for task in checked(job) if isinstance(task, Task)]
    alone = _pcm(job, out, tasks[4:5])
    mixed = [tasks[i] if i == 4 else _other(tasks[i], voices[i]) for i in order]
    assert _pcm(job, out, mixed)[tasks[4].digest] == alone[tasks[4].digest]


def _other(task: Task, voice: str) -> Task:
    row = Row(task.row.number, task.row.id, TEXTS[len(voice) + task.row.number % 3], voice)
    return Task(row, task.path, task.seed + 1, task.digest)


def _pcm(job: Job, out: Path, tasks: list[Task]) -> dict[str, str]:
    station = job.work.station(out, 1)
    return {entry["digest"]: entry["pcm_sha256"] for entries in drive(station, iter(tasks)) for entry in entries}


def test_several_processes_make_the_same_folder_even_when_one_is_killed(tmp_path: Path, voice: Path) -> None:
    import multiprocessing

    source = table(tmp_path / "in.jsonl", 40)
    do(job_of(source, tmp_path / "one", voice))
    killed: list[int] = []

    def kill_one(*_: Any) -> None:
        if not killed:
            victim = multiprocessing.active_children()[0]
            killed.append(victim.pid or 0)
            os.kill(victim.pid or 0, signal.SIGKILL)

    report = run_job(job_of(source, tmp_path / "two", voice), local(2), kill_one)
    assert killed
    assert (report.made, report.failed) == (40, 0)
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    assert not multiprocessing.active_children()
    assert not list(tmp_path.rglob("*.part"))


def test_processes_that_die_whatever_they_get_end_the_job(tmp_path: Path, voice: Path) -> None:
    import multiprocessing

    over = threading.Event()

    def reaper() -> None:
        while not over.wait(0.02):
            for child in multiprocessing.active_children():
                if child.pid and child.name == "quaver-batch":
                    os.kill(child.pid, signal.SIGKILL)

    thread = threading.Thread(target=reaper)
    thread.start()
    try:
        with pytest.raises(QuaverError, match="worker processes die"):
            do(job_of(table(tmp_path / "in.jsonl", 30), tmp_path / "out", voice), 2)
    finally:
        over.set()
        thread.join()
    assert do(job_of(tmp_path / "in.jsonl", tmp_path / "out", voice, retry_failed=True)).made == 30


# -- stopping and going on ---------------------------------------------------------------------------------------------
def test_a_stopped_job_goes_on(tmp_path: Path, voice: Path) -> None:
    source, made = table(tmp_path / "in.jsonl", 12), []
    do(job_of(source, tmp_path / "whole", voice))

    def stop(survey: Any, entry: Any) -> None:
        made.append(entry["id"])
        if len(made) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job_of(source, tmp_path / "out", voice), local(1), stop)
    assert len(lines(tmp_path / "out" / "manifest.jsonl")) == 5  # what there is, is in the manifest
    assert not list(tmp_path.rglob("*.part"))
    report = do(job_of(source, tmp_path / "out", voice))
    assert (report.run_rows, report.made) == (7, 12)
    assert do(job_of(source, tmp_path / "out", voice)).run_rows == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def kills(source: Path, out: Path, voice: Path, count: int, dice: random.Random, extra: tuple[str, ...] = ()) -> int:
    """Runs the command until it ends, killing it `count` times as its journal grows; how often it was killed."""
    command = [sys.executable, "-m", "quaver.app.cli", "batch", str(source), "-o", str(out), "--model", str(voice)]
    command = [sys.executable, "-c", "from quaver.app.cli import main; main()", *command[3:], "--slots", "3", *extra]
    journal = out / ".batch" / "journal.jsonl"
    killed = 0
    while True:
        process = subprocess.Popen([*command, "-q"], stderr=subprocess.PIPE, start_new_session=True)
        before = journal.stat().st_size if journal.exists() else 0
        more = dice.randrange(1, 2500)
        while killed < count and process.poll() is None:
            if journal.exists() and journal.stat().st_size >= before + more:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        _, errors = process.communicate(timeout=300)
        if process.returncode == -signal.SIGKILL:
            killed += 1
            continue
        assert process.returncode == 0, errors.decode()
        return killed


def test_killed_at_any_moment_nothing_is_lost_or_done_twice(tmp_path: Path, voice: Path) -> None:
    source = table(tmp_path / "in.jsonl", 30)
    do(job_of(source, tmp_path / "whole", voice))
    summary = tmp_path / "out" / "summary.json"
    assert kills(source, tmp_path / "out", voice, 1, random.Random(1), ("-w", "1")) == 1
    summary.unlink()
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    ids = [entry["id"] for entry in lines(tmp_path / "out" / ".batch" / "journal.jsonl")]
    assert sorted(ids) == sorted(f"row-{i}" for i in range(30))


@pytest.mark.long
@pytest.mark.timeout(3600)  # twenty starts, on a machine that does other things too
def test_twenty_random_kills(tmp_path: Path, voice: Path) -> None:
    source = table(tmp_path / "in.jsonl", 300)
    do(job_of(source, tmp_path / "whole", voice))
    assert kills(source, tmp_path / "out", voice, 20, random.Random(7), ("-w", "2")) == 20
    (tmp_path / "out" / "summary.json").unlink()
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    ids = [entry["id"] for entry in lines(tmp_path / "out" / ".batch" / "journal.jsonl")]
    assert sorted(ids) == sorted(f"row-{i}" for i in range(300))


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_stops_all_processes_cleanly(tmp_path: Path, voice: Path) -> None:
    source = table(tmp_path / "in.jsonl", 4000)  # enough to be stopped in, on a fast machine too
    code = "from quaver.app.cli import main; main()"
    options = ["batch", str(source), "-o", str(tmp_path / "out"), "--model", str(voice), "-w", "2", "--slots", "3"]
    # A test run that was put into the background ignores SIGINT, and a child inherits that: hand it the default back.
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options], stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    journal = tmp_path / "out" / ".batch" / "journal.jsonl"
    while not (journal.exists() and journal.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"the same command goes on" in errors
    assert b"Traceback" not in errors
    assert not list(tmp_path.rglob("*.part"))
    wait_until(lambda: not _alive(process.pid), 20)  # nobody of the group is left
    missing = len(lines(journal)) - len(lines(tmp_path / "out" / "manifest.jsonl"))
    assert missing in (0, 1)  # one may have been on its way into the journal


def test_a_folder_has_one_job_at_a_time(tmp_path: Path, voice: Path) -> None:
    holder = Journal(tmp_path / "out" / ".batch")
    with pytest.raises(BadInput, match="another process"):
        do(job_of(table(tmp_path / "in.jsonl", 2), tmp_path / "out", voice))
    holder.close()
    assert do(job_of(tmp_path / "in.jsonl", tmp_path / "out", voice)).made == 2


def test_only_what_has_changed_is_done_again(tmp_path: Path, voice: Path) -> None:
    source = table(tmp_path / "in.jsonl", 6)
    do(job_of(source, tmp_path / "out", voice))
    rows = lines(source)
    rows[2]["text"] = "Another text."
    source.write_text("".join(json.dumps(row) + "\n" for row in [{"id": "new", "text": "New."}, *rows]))
    assert do(job_of(source, tmp_path / "out", voice)).run_rows == 2
    (tmp_path / "out" / "row-4.wav").unlink()
    (tmp_path / "out" / "row-5.wav").write_bytes(b"cut")
    assert do(job_of(source, tmp_path / "out", voice)).run_rows == 2
    assert do(job_of(source, tmp_path / "out", voice, pause=2.0)).run_rows == 7
    do(job_of(source, tmp_path / "fresh", voice, pause=2.0))
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


# -- the journal -------------------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400))
def test_a_journal_that_was_cut_off_keeps_its_whole_lines(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder)
    for i in range(6):
        journal.add({"digest": f"{i:020x}", "id": f"naïve-{i}", **({"error": "x"} if i % 2 else {})})
    journal.close()
    data = (folder / "journal.jsonl").read_bytes()
    (folder / "journal.jsonl").write_bytes(data[: max(0, len(data) - cut)])
    whole = data[: max(0, len(data) - cut)].count(b"\n")
    journal = Journal(folder)
    assert len(journal) == whole
    assert [journal.known(f"{i:020x}") for i in range(6)] == [i < whole for i in range(6)]
    assert [journal.failed(f"{i:020x}") for i in range(whole)] == [bool(i % 2) for i in range(whole)]
    journal.add({"digest": "f" * 20, "id": "after"})
    entry = journal.get("f" * 20)
    assert entry is not None
    assert entry["id"] == "after"
    journal.close()
    assert (folder / "journal.jsonl").read_bytes().count(b"\n") == whole + 1


def test_a_journal_damaged_in_the_middle_says_so(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b'{"digest": "01"}\nrubbish\n{"digest": "02"}\n')
    with pytest.raises(CorruptFile, match="line 2"):
        Journal(tmp_path)
    Journal(tmp_path / "other").close()  # and the lock is free again


# -- bad rows ----------------------------------------------------------------------------------------------------------
BAD = [
    {"id": "good", "text": "Hello there."},
    {"id": "empty", "text": " "},
    {"id": "good", "text": "A second one."},
    {"id": "../../etc/x", "text": "Out."},
    {"id": "abs", "name": "/tmp/x", "text": "Out."},
    {"id": "hidden", "name": ".batch/journal", "text": "In."},
    {"id": "GOOD", "text": "The same file on some disks."},
    {"id": "who", "text": "Hi.", "voice": "nobody"},
    {"id": "fast", "text": "Hi.", "speed": 99},
    {"id": "model", "text": "Hi.", "model": "no-such-model"},
    {"id": "emoji", "text": "🎉🎉"},
    {"id": "sub/dir", "text": "Good too."},
]


def test_bad_rows_fail_alone_and_the_exit_code_says_so(run: Run, tmp_path: Path, voice: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in BAD) + "rubbish\n")
    result = run("batch", "in.jsonl", "-o", "out", "--model", voice, "-w", 1)
    assert result.code == 3
    assert b"out" in result.out
    failed = {row["number"]: row for row in lines(tmp_path / "out" / "failed.jsonl")}
    assert sorted(failed) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    for number, word in ((3, "before"), (4, "out of the"), (5, "out of the"), (6, "hidden"), (7, "another row")):
        assert word in failed[number]["reason"]
    for number, word in ((8, "nobody"), (9, "speed"), (10, "no-such-model"), (13, "JSON")):
        assert word in failed[number]["reason"]
    assert failed[8]["text"] == "Hi."  # with all its columns: it can be mended and given to another job
    assert [row["path"] for row in lines(tmp_path / "out" / "manifest.jsonl")] == ["good.wav", "sub/dir.wav"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["failed"] == 11
    assert not list(tmp_path.parent.rglob("x.wav"))

    (tmp_path / "in.jsonl").write_text(json.dumps(BAD[0]) + "\n")
    assert run("batch", "in.jsonl", "-o", "out", "--model", voice, "-w", 1).code == 0
    assert not (tmp_path / "out" / "failed.jsonl").exists()


def test_what_is_wrong_with_the_whole_job_is_one_line(run: Run, tmp_path: Path, voice: Path) -> None:
    table(tmp_path / "in.jsonl", 1)
    (tmp_path / "none.txt").write_text("\n\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is none")
    assert_one_line(run("batch", "nothing.csv", "-o", "out"), "nothing.csv")
    assert_one_line(run("batch", "none.txt", "-o", "out", "--model", voice), "no rows")
    assert_one_line(run("batch", "in.jsonl", "-o", "out", "--name", "{voice}"), "{id}")
    assert_one_line(run("batch", "in.jsonl", "-o", "out", "--name", "{id.__class__}"), "braces")
    assert_one_line(run("batch", "in.jsonl", "-o", "out", "--part", "3/2"), "--part")
    assert_one_line(run("batch", "in.jsonl", "-o", "out", "--asr", "x"), "--check")
    assert_one_line(run("batch", "in.jsonl", "-o", "in.jsonl", "--model", voice), "in.jsonl")
    assert_one_line(run("batch", "bad.parquet", "-o", "out"), "p")  # damaged, or pyarrow is missing


def test_a_full_disk_fails_its_rows_and_they_can_be_retried(
    tmp_path: Path, voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = table(tmp_path / "in.jsonl", 9)
    do(job_of(source, tmp_path / "whole", voice))
    real, full = os.fsync, {"row-3", "row-5"}

    def fsync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if any(f".{name_}.wav" in name for name_ in full):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    report = do(job_of(source, tmp_path / "out", voice))
    assert (report.made, report.failed, report.reasons) == (7, 2, {"disk": 2})
    assert {row["id"] for row in lines(tmp_path / "out" / "failed.jsonl")} == full
    assert not list(tmp_path.rglob("*.part"))
    assert do(job_of(source, tmp_path / "out", voice)).run_rows == 0  # not by itself
    full.clear()
    report = do(job_of(source, tmp_path / "out", voice, retry_failed=True))
    assert (report.run_rows, report.made, report.failed) == (2, 9, 0)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_disk_that_stays_full_ends_the_job(tmp_path: Path, voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if ".part" in os.readlink(f"/proc/self/fd/{handle}") and "wav" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(run_module, "GIVE_UP", 4)
    with pytest.raises(QuaverError, match="could not be written"):
        do(job_of(table(tmp_path / "in.jsonl", 30), tmp_path / "out", voice))


def test_a_journal_that_cannot_be_written_ends_the_job_and_it_goes_on(
    tmp_path: Path, voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = table(tmp_path / "in.jsonl", 9)
    do(job_of(source, tmp_path / "whole", voice))
    real, calls = Journal.add, []

    def add(self: Journal, entry: Any) -> None:
        calls.append(entry)
        if len(calls) == 4:  # half a line gets through
            self._file.write(b'{"digest": "0')
            self._file.flush()
            self._file.close()
            self._file = _Full(self.path)  # type: ignore[assignment]
        real(self, entry)

    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(QuaverError, match="journal cannot be written"):
        do(job_of(source, tmp_path / "out", voice))
    monkeypatch.setattr(Journal, "add", real)
    do(job_of(source, tmp_path / "out", voice))
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


class _Full:
    """A file on a full disk."""

    closed = False

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def seek(self, *place: int) -> int:
        return self._file.seek(*place)

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self._file.close()


# -- names, shards, parts ----------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(
    name=st.one_of(
        st.text(max_size=40),
        st.lists(st.sampled_from(["..", ".", "", "a", "/", "~", "C:", "\\", "b c", "\x00", "é"]), max_size=5).map(
            "/".join
        ),
    ),
    template=st.sampled_from(["{name}", "{id}", "{voice}/{name}", "x-{id}-{seed}", "{shard}/{number}-{name}"]),
)
def test_no_name_leads_out_of_the_folder(tmp_path_factory: pytest.TempPathFactory, name: str, template: str) -> None:
    try:
        path = Names(template, ".wav", 10).path(Row(17, name or "x", "t", name=name), "low", "some/model", 5)
    except (BadInput, UnicodeEncodeError):
        return
    out = Path("/work") / "out"
    assert os.path.normpath(out / path).startswith(str(out) + os.sep)
    assert path.endswith(".wav")
    assert not any(part.startswith(".") for part in path.split("/"))


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="link"):
        inside(tmp_path / "out", "sub/a.wav")
    assert inside(tmp_path / "out", "other/a.wav").parent.is_dir()


def test_shards_have_folders_and_manifests_and_parts_share_the_rows(tmp_path: Path, voice: Path) -> None:
    source = table(tmp_path / "in.jsonl", 11)
    do(job_of(source, tmp_path / "out", voice))
    sharded = job_of(source, tmp_path / "out2", voice, name="{shard}/{id}", shard_rows=4)
    do(sharded)
    found = sorted((tmp_path / "out2").glob("manifest*.jsonl"))
    assert [path.name for path in found] == [f"manifest-0000{i}.jsonl" for i in range(3)]
    rows = [row for path in found for row in lines(path)]
    whole = lines(tmp_path / "out" / "manifest.jsonl")
    assert [row["pcm_sha256"] for row in rows] == [row["pcm_sha256"] for row in whole]
    assert rows[4]["path"] == "00001/row-4.wav"
    parts = [do(job_of(source, tmp_path / f"part{i}", voice, part=(i, 3))) for i in (1, 2, 3)]
    assert [part.made for part in parts] == [4, 4, 3]
    split = [row for i in (1, 2, 3) for row in lines(tmp_path / f"part{i}" / "manifest.jsonl")]
    assert sorted(split, key=lambda row: row["number"]) == whole


@pytest.mark.parametrize("suffix", [".flac", ".opus", ".mp3"])
def test_every_format_holds_the_speech(tmp_path: Path, voice: Path, suffix: str) -> None:
    do(job_of(table(tmp_path / "in.jsonl", 2), tmp_path / "out", voice, suffix=suffix))
    for row in lines(tmp_path / "out" / "manifest.jsonl"):
        samples, rate = soundfile.read(tmp_path / "out" / row["path"])
        assert rate == row["sample_rate"]
        assert abs(len(samples) - row["samples"]) < 0.15 * rate
        assert np.isfinite(samples).all()


def test_the_dry_run_writes_nothing_and_reckons_the_length(run: Run, tmp_path: Path, voice: Path) -> None:
    table(tmp_path / "in.jsonl", 20)
    dry = run("batch", "in.jsonl", "-o", "out", "--model", voice, "--dry-run", "-w", 1)
    assert dry.code == 0, dry.err
    assert not (tmp_path / "out").exists()
    told = dict(line.split(": ", 1) for line in dry.out.decode().splitlines() if ": " in line)
    assert told["to do"] == "20"
    assert run("batch", "in.jsonl", "-o", "out", "--model", voice, "-w", 1, "--slots", 16).code == 0
    made = sum(row["seconds"] for row in lines(tmp_path / "out" / "manifest.jsonl"))
    assert float(told["speech"].removesuffix(" s")) == pytest.approx(made, abs=0.51)  # all 20 were in the sample


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
