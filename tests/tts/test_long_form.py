"""Long texts: memory does not grow with them, one decoder runs through all sentences, and the joints are not heard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from quaver.codecs.loading import MODELS
from quaver.evaluation.tts_seams import find_seams
from quaver.tts.script import Script
from quaver.tts.synthesizer import Synthesizer
from quaver.tts.token_synthesizer import FlowSound, TokenSynthesizer, TokenVoiceSettings

from .test_flow import flow_model, mel_codec
from .tokens import token_lm

SENTENCES = (
    "The committee met on Thursday and found nothing new. It will meet again next week! Will anyone come? "
    "Rain fell all night, and the river rose by a metre. By noon the bridge was closed. "
    "They walked home along the old railway, talking of nothing at all. Nobody was late."
)


def test_a_long_streamed_text_takes_no_more_memory_than_a_short_one(synthesizer: Synthesizer) -> None:
    count, sizes, held = 40, set(), 0
    batch, script = synthesizer.batch(), Script(synthesizer.frontend)
    batch.join(0, script, synthesizer.settings_of())

    def text() -> Iterator[str]:
        yield from (f"Go {'abc'[i % 3]}. " for i in range(count))

    pieces, spoken = text(), 0
    while not batch.done(0):
        if batch.waits(0):
            piece = next(pieces, None)
            script.close() if piece is None else script.push(piece)
            spoken += piece is not None
            sizes.add((batch.generation.state.nbytes(), batch.decoder.state.nbytes()))
            held = max(held, len(script._sentences) + len(script.upcoming))
        answer = batch.answers[0]
        batch.tick()
        assert answer is not None
        assert len(answer.waiting) <= 64
    assert spoken == count
    assert len(sizes) == 1
    assert held <= 1


def test_a_long_text_through_a_flow_keeps_one_state(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    sound = FlowSound(flow_model(), mel_codec())
    original = sound.decoder

    def decoder(*arguments: Any, **options: Any) -> Any:
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(sound, "decoder", decoder)
    voice = TokenSynthesizer(token_lm("cosyvoice2"), sound, TokenVoiceSettings())
    sizes, waiting = set(), 0
    for _ in voice.stream(iter(["Go on. "] * 12)):
        sizes.add(made[0].state.nbytes())
        waiting = max(waiting, made[0].waiting.shape[-1])
    assert len(made) == 1  # one decoder, and so one state, for all sentences
    assert len(sizes) == 1
    assert waiting <= 3 + 2 + 4  # a chunk, its look-ahead, and what was just pushed


@pytest.mark.long
@pytest.mark.parametrize("voice", ["hibari", "michael"])
def test_joints_of_the_bundled_voices_are_not_heard(voice: str) -> None:
    """Level and pitch at joints jump less than the 99th percentile of their jumps within sentences."""
    pytest.importorskip("pyworld")
    if not (MODELS / "quaver-en" / "config.json").exists():
        pytest.skip("the bundled voice is not here")
    speech = Synthesizer.load("quaver-en").say(SENTENCES, voice=voice)
    ends = [p.end for p in speech.phones if p.text in (".", "!", "?")][:-1]
    seams = find_seams(speech.samples, speech.sample_rate, ends)
    assert len(seams.level) == 6
    assert np.all(seams.level < seams.level_limit)
    assert np.isnan(seams.pitch).all()  # no voice goes on over a joint, so its pitch cannot jump
    assert np.all(seams.reset < seams.reset_limit)
    assert seams.heard == 0
