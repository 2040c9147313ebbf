"""Speculation in jobs: rows stay alone, the exact law's settings decide what is done again, bad settings say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quaver.app.batch.speech import SpeechWork
from quaver.app.batch.work import Task
from quaver.app.speculation import RULES, Speculating
from quaver.errors import BadInput
from quaver.tts.groups import weights_hash
from quaver.tts.speculative_depth import ResidualDrafter
from quaver.tts.speculative_voice import MODES

from ...laws import randomised
from ...tts.conftest import tiny_lm
from ..conftest import Run, assert_one_line
from .conftest import do, job_of, lines, table, tree

pytestmark = pytest.mark.batch
EXACT = Speculating(rule="exact")


@pytest.fixture(scope="module")
def drafted(voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The voice with a drafter (of random weights) beside its own."""
    folder = tmp_path_factory.mktemp("drafted") / "voices"
    shutil.copytree(voice.parent, folder)
    head: Any = tiny_lm().head
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drafter = randomised(ResidualDrafter(8, head.codebooks, head.vocab, head.vocab, hidden=6), 3, 0.5)
    (folder / "voice" / "draft").mkdir()
    save_file(drafter.state_dict(), folder / "voice" / "draft" / "model.safetensors")
    config = {"kind": "depth_draft", "hidden": 6, "target": weights_hash(folder / "voice")}
    (folder / "voice" / "draft" / "config.json").write_text(json.dumps(config))
    return folder / "voice"


def test_the_rules_of_the_commands_are_those_of_the_models() -> None:
    assert RULES == MODES


def test_any_number_of_workers_and_slots_in_use_makes_the_same_folder(tmp_path: Path, drafted: Path) -> None:
    source = table(tmp_path / "in.jsonl", 8)
    assert do(job_of(source, tmp_path / "one", drafted, speculation=EXACT)).made == 8
    assert do(job_of(source, tmp_path / "two", drafted, speculation=EXACT), workers=2).made == 8
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    do(job_of(source, tmp_path / "plain", drafted))
    said = {row["id"]: row["pcm_sha256"] for row in lines(tmp_path / "one" / "manifest.jsonl")}
    plain = {row["id"]: row["pcm_sha256"] for row in lines(tmp_path / "plain" / "manifest.jsonl")}
    assert said.keys() == plain.keys()
    assert said != plain  # the same law by other random numbers: it did speculate


def test_rows_are_done_again_when_what_drafts_or_judges_has_changed(tmp_path: Path, drafted: Path) -> None:
    source = table(tmp_path / "in.jsonl", 2)

    def digests(**settings: object) -> set[str]:
        return {row.digest for row in _tasks(source, tmp_path, drafted, **settings)}

    plain, exact = digests(), digests(speculation=EXACT)
    assert plain == digests(speculation=Speculating())
    assert plain.isdisjoint(exact)
    assert exact.isdisjoint(digests(speculation=Speculating(rule="exact", length=2)))


def _tasks(source: Path, folder: Path, voice: Path, **settings: object) -> list[Task]:
    from quaver.app.batch.run import checked

    return [task for task in checked(job_of(source, folder / "out", voice, **settings)) if isinstance(task, Task)]


def test_bad_settings_are_one_line(run: Run, tmp_path: Path, voice: Path, drafted: Path) -> None:
    table(tmp_path / "in.jsonl", 1)
    job = ("batch", "in.jsonl", "-o", "out", "--model")
    assert_one_line(run(*job, drafted, "--speculate", "maybe"), "off, exact")
    assert_one_line(run(*job, drafted, "--speculate", "exact", "--draft-length", "auto"), "give a number")
    assert_one_line(run(*job, drafted, "--speculate", "budgeted", "--delta", -1), "negative")
    assert run(*job, voice, "--speculate", "exact", "--draft", "lookup", "-w", 1).code == 3  # the row says why
    assert "draft" in lines(tmp_path / "out" / "failed.jsonl")[0]["reason"]


def test_what_decides_is_known_without_loading_anything(drafted: Path, voice: Path) -> None:
    print_of = EXACT.fingerprint(str(drafted))
    assert print_of["drafter"]
    assert not print_of["groups"]
    assert EXACT.fingerprint(str(voice))["drafter"] == ""
    assert Speculating(rule="exact", draft="lookup").fingerprint(str(drafted))["drafter"] == ""
    assert Speculating().fingerprint(str(drafted)) == {}
    with pytest.raises(BadInput, match="number"):
        SpeechWork(model=str(drafted), speculation=Speculating(rule="exact", length="auto")).check()


def test_a_server_speculates_for_everybody_when_it_is_told_to(drafted: Path, tmp_path: Path) -> None:
    """Along depth as well: a pointer voice in slots."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from quaver.app.server.run import load_app
    from quaver.app.server.settings import read_settings

    folders = {"keys": tmp_path / "keys.json", "voices": tmp_path / "voices"}
    settings = read_settings(models=(str(drafted),), slots=2, speculation=EXACT, **folders)
    with TestClient(load_app(settings), base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/audio/speech", json={"input": "Hello there.", "response_format": "pcm"})
        head = client.app.state.service.engine.synthesizer("voice").lm.head  # type: ignore[attr-defined]
    assert answer.status_code == 200
    assert len(answer.content) > 100
    assert head.figures.judged > 0
