"""Scripted dialogues: the grammar, the rendering with real (fast) voices, and the task that trains on them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.dialogue.loading import load_duplex
from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile
from quaver.evaluation.duplex import Event, activity, score
from quaver.evaluation.duplex_run import run_duplex
from quaver.training.dialogue_audio import DialogueRow, load_dialogues, make_dialogues, read_channels
from quaver.training.dialogues import NAMES, held_out, number_word, script, texts
from quaver.training.loop import Trainer, _means
from quaver.training.recipe import Recipe
from quaver.training.tasks import build_task
from quaver.training.teachers import TeacherSpec
from quaver.training.written_dialogues import written_dialogue

from ..dialogue.tiny import CODEC


def test_the_grammar_makes_thousands_of_dialogues_with_answers_that_depend_on_the_question() -> None:
    scripts = [tuple((e.user, e.reply) for e in script(seed, "train")) for seed in range(1000)]
    assert len(set(scripts)) == 1000
    assert scripts[7] == tuple((e.user, e.reply) for e in script(7, "train"))
    replies: dict[str, set[str]] = {}
    for exchange in (e for seed in range(300) for e in script(seed, "train")):
        heard = [w.strip(".,?!").lower() for w in exchange.reply.split()]
        place = 0
        for choice in exchange.answer.split():  # the reply itself is a right answer
            place = next(i for i in range(place, len(heard)) if heard[i] in choice.split("|")) + 1
        replies.setdefault(exchange.topic, set()).add(exchange.reply)
    assert set(replies) == {"greeting", "arithmetic", "calendar", "repeat", "colour", "fact", "story", "goodbye"} | {
        "louder",
        "slower",
    }
    assert len(replies["arithmetic"]) > 100


def test_fillers_of_the_test_set_are_never_trained_on() -> None:
    def asked(split: str, topics: set[str]) -> set[str]:
        found = (e for s in range(400) for e in script(s, split))  # type: ignore[arg-type]
        return {e.answer if e.topic == "greeting" else e.user for e in found if e.topic in topics}

    for topic in ("greeting", "calendar", "repeat"):
        train, test = asked("train", {topic}), asked("test", {topic})
        assert train
        assert test
        assert not train & test
    assert 0.05 < np.mean([held_out(str(i)) for i in range(1000)]) < 0.3


def test_numbers() -> None:
    assert [number_word(n) for n in (0, 13, 20, 42)] == ["zero", "thirteen", "twenty", "forty two"]
    with pytest.raises(BadInput):
        number_word(100)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dialogues")
    make_dialogues(folder, 2, assistant=TeacherSpec("hibari", "", 1), users=[TeacherSpec("espeak", "", 1)], turns=2)
    return folder


def test_what_was_scripted_is_what_is_heard(corpus: Path) -> None:
    """The recorded assistant against its own labels: it answers every turn, and speaks where its words are."""
    rows = load_dialogues(corpus)
    assert len(rows) == 2
    for row in rows:
        audio = read_channels(row)
        assert audio.shape == (2, round(row.seconds * 24_000))
        assert np.abs(audio).max() < 1
        spurts = activity(audio[1], 24_000)
        for _, start, end in row.words:
            assert start < end
            assert any(a - 0.08 <= (start + end) / 2 <= b + 0.08 for a, b in spurts)
        user = [(e.start, e.end) for e in row.events if e.kind in ("turn", "interrupt")]
        found = score(user, spurts, row.events, row.seconds)
        assert found.answered == found.turns >= 4
        assert all(0.2 < x < 0.5 for x in found.offsets)
        assert found.takeovers == 0
        assert row.words[0][0] == "Hello"
    report = run_duplex(corpus, None, split="train", out=corpus / "report")
    assert report.total.figures()["response rate"] == 1
    assert (corpus / "report" / "timeline.png").stat().st_size > 5000


def test_a_run_goes_on_where_it_stopped(corpus: Path) -> None:
    before = (corpus / "dialogues.jsonl").read_text()
    spec = TeacherSpec("espeak", "", 1)
    make_dialogues(corpus, 2, assistant=TeacherSpec("hibari", "", 1), users=[spec], turns=2)
    assert (corpus / "dialogues.jsonl").read_text() == before


def test_misuse_is_told(corpus: Path, tmp_path: Path) -> None:
    hibari, espeak = TeacherSpec("hibari", "", 1), TeacherSpec("espeak", "", 1)
    with pytest.raises(BadInput, match="others than"):
        make_dialogues(tmp_path, 1, assistant=hibari, users=[hibari])
    with pytest.raises(BadInput, match="at least one"):
        make_dialogues(tmp_path, 1, assistant=hibari, users=[])
    with pytest.raises(BadInput, match="word times"):
        make_dialogues(tmp_path, 1, assistant=espeak, users=[TeacherSpec("flite", "", 1)])
    with pytest.raises(BadInput, match="split"):
        script(0, "dev")  # type: ignore[arg-type]
    with pytest.raises(MissingFile):
        load_dialogues(tmp_path / "none")
    (tmp_path / "dialogues.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(CorruptFile, match="line 1"):
        load_dialogues(tmp_path)
    with pytest.raises(BadInput, match="no dialogues"):
        run_duplex(corpus, None, split="test")


def recipe(corpus: Path, codec: Path, **changes: object) -> Recipe:
    model = {
        "own": 2,
        "user": 2,
        "backbone": {"width": 32, "layers": 1, "heads": 2, "hidden": 48, "window": 50, "slack": 4},
        "depth": {"width": 16, "layers": 1, "heads": 2, "hidden": 24},
    }
    raw = {
        "name": "d",
        "task": "duplex",
        "steps": 12,
        "batch_seconds": 8,
        "data": [{"pack": str(corpus)}],
        "model": model,
        "options": {"codec": str(codec), "crop": 2.0, "words": 300},
        "optimizer": {"lr": 0.01, "warmup": 2},
        "log_every": 1,
    }
    return Recipe.model_validate(raw | changes)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("codec")
    config = XCodecConfig.model_validate({**CODEC, "hop": 240, "n_fft": 960})
    save_file(XCodec(config).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(config.model_dump_json()[:-1] + ', "kind": "codec"}')
    return folder


def test_the_task_trains_and_its_folder_talks(corpus: Path, codec: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = build_task(recipe(corpus, codec))
    codes = task.batch(np.random.default_rng(0), 0)["codes"]
    assert codes.shape == (4, 5, 50)
    assert int(codes[:, 1:].max()) < 8
    Trainer(task, recipe(corpus, codec), tmp_path / "run").run()
    losses = [float(line.split(",")[2]) for line in (tmp_path / "run" / "log.csv").read_text().splitlines()[1:]]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    parts = load_duplex(str(tmp_path / "run"))
    said = parts.session().step(np.zeros(960, np.float32))
    assert said.audio.shape == (960,)
    report = run_duplex(corpus, parts, split="train", limit=1)
    assert report.total.seconds > 5


def test_the_users_words_are_spread_over_the_turn_but_not_over_its_pauses() -> None:
    from quaver.training.tasks.duplex import _user_words

    events = (Event("turn", 1.0, 3.1, "what is two"), Event("pause", 1.9, 2.9), Event("noise", 3.5, 3.6))
    row = DialogueRow("a", Path("a"), 4.0, (), events, "train", "joe")
    assert [(w, round(a, 2)) for w, a, _ in _user_words(row)] == [("what", 1.0), ("is", 1.46), ("two", 1.73)]
    assert round(_user_words(row)[-1][2], 2) == 3.1


def test_the_vocabulary_covers_what_the_assistant_says() -> None:
    from quaver.dialogue.monologue import PieceVocabulary

    vocabulary = PieceVocabulary.of_texts(texts(300), 420)
    tokens = [len(vocabulary.encode(w)) for t in texts(300, "test") for w in t.split()]
    assert np.mean(np.array(tokens) == 1) > 0.9  # held-out names are spelled


def test_exercises_hold_names_that_nobody_has_and_sums_that_no_voice_spoke() -> None:
    spoken = [e for s in range(400) for e in script(s, "train")]
    written = [e for s in range(2000) for e in script(s, "train", exercise=True)]
    names = {e.answer for e in written if e.topic == "greeting"}
    assert {n.lower() for n in NAMES} & names
    assert len(names - {n.lower() for n in NAMES}) > 50
    assert not names & {n.lower() for n in NAMES if held_out(n)}
    sums = {e.reply for e in written if e.topic == "arithmetic"}
    assert any(r.startswith("Twenty nine plus") for r in sums)
    assert not any(e.reply.startswith("Twenty nine") for e in spoken)
    series = {e.reply for e in written if e.topic == "recite"}
    assert {"Saturday, Sunday.", "Nineteen, twenty, twenty one."} <= series
    assert not any(e.topic == "recite" for e in spoken)
    assert not any(e.long for e in written)


@given(st.integers(0, 2**31), st.floats(0.5, 30))
def test_a_written_dialogue_answers_after_each_question(seed: int, seconds: float) -> None:
    user, own = written_dialogue(np.random.default_rng(seed), seconds)
    said = sorted(user + own, key=lambda w: w[1])
    assert all(a[2] <= b[1] + 1e-6 for a, b in pairwise(said))  # nobody interrupts on paper
    assert max(end for _, _, end in said) >= seconds - 1.4  # the last pause counts
    assert said[0] == user[0]
    assert said[-1] == own[-1]


def test_written_batches_train_the_answers_and_no_sound(corpus: Path, codec: Path, tmp_path: Path) -> None:
    plain = recipe(corpus, codec)
    options = {**plain.options, "written": 0.5}
    with pytest.raises(ConfigError, match="heard_input"):
        build_task(recipe(corpus, codec, options=options))
    model = {**plain.model, "heard": 4, "heard_input": True}
    settings = recipe(corpus, codec, options=options, model=model, log_every=4)
    task = build_task(settings)
    batches = [task.batch(np.random.default_rng(seed), 0) for seed in range(20)]
    paper = [b for b in batches if "record" in b]
    assert 0 < len(paper) < 20
    for batch in paper:
        assert bool((batch["codes"][:, 1:] == -1).all())
        assert bool((batch["codes"][:, 0] > 1).any())
        assert bool((batch["record"] > 1).any())
    losses = task.network(paper[0], 0)
    assert set(losses) == {"loss", "written"}
    losses["loss"].backward()
    grads = {name for name, p in task.network.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any("heard_table" in name for name in grads)
    assert not any("depth" in name or "heard_head" in name for name in grads)
    Trainer(task, settings, tmp_path / "run").run()
    header, *rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert all(line.count(",") == header.count(",") for line in rows)


def test_a_log_row_is_the_mean_over_the_steps_that_had_the_loss() -> None:
    assert _means([{"loss": 1.0, "text": 4.0}, {"loss": 3.0, "written": 2.0}]) == {"loss": 2, "text": 4, "written": 2}
