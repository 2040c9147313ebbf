"""A tiny voice on disk, and what jobs leave in a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quaver.app.batch.names import Names
from quaver.app.batch.rows import read_rows
from quaver.app.batch.run import Job, Report, local, run_job
from quaver.app.batch.speech import SpeechWork
from quaver.codecs.native import XCodec, XCodecConfig

from ...tts.conftest import CODEC, LM, tiny_lm

TEXTS = ("One.", "Two birds sang.", "Hello there.", "It rains a lot, does it not?", "No.", "A b c.", "Go on, then.")


@pytest.fixture(scope="session")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model of two voices; its codec lies beside it."""
    folder = tmp_path_factory.mktemp("voices")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = XCodec(XCodecConfig(**CODEC))
        lm = tiny_lm()
    for name, module, config in (
        ("tiny", codec, {"kind": "codec", **CODEC}),
        ("voice", lm, {"kind": "lm", "codec": "tiny", **LM}),
    ):
        (folder / name).mkdir()
        save_file(module.state_dict(), str(folder / name / "model.safetensors"))
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder / "voice"


def table(path: Path, count: int, **columns: Any) -> Path:
    """A jsonl of short texts in two voices."""
    rows = (
        {"id": f"row-{i}", "text": f"{TEXTS[i % len(TEXTS)]}", "voice": ("high", "low")[i % 2], **columns}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job_of(source: Path, out: Path, voice: Path, **settings: Any) -> Job:
    keys = {key: settings.pop(key) for key in ("seed", "part", "retry_failed") if key in settings}
    names = Names(settings.pop("name", "{name}"), settings.get("suffix", ".wav"), settings.pop("shard_rows", 0))
    work = SpeechWork(model=str(voice), **{"slots": 3, **settings})
    return Job(lambda: read_rows(source), out, work, names, **keys)


def do(job: Job, workers: int = 1) -> Report:
    return run_job(job, local(workers))


def tree(folder: Path) -> dict[str, str]:
    """What a job leaves, by name: hashes of everything but the journal and the picture."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and ".batch" not in f.parts and f.suffix != ".png")
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
