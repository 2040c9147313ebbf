"""SpeechBatch: law 3 from the text to the samples, and what becomes of a slot whose work fails."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.errors import BadInput
from quaver.tts.decoder import AcousticDecoder, BatchDecoder
from quaver.tts.speaking import AudioChunk, Script, SpeechBatch
from quaver.tts.synthesizer import Synthesizer, VoiceSettings

from ..laws import TOLERANCE, few
from .conftest import CODEC, tiny_lm

TEXTS = ("Hello world.", "Is it you? Good.", "Wait <break time='200ms'/> here.", "No.")


def make(pattern: str = "parallel") -> Synthesizer:
    torch.manual_seed(0)
    codec = XCodec(XCodecConfig(**CODEC)).eval()
    settings = VoiceSettings(names={"Alice": "high", "Bob": "low"}, default="Alice")
    return Synthesizer(tiny_lm(pattern=pattern), codec, settings)


SYNTHESIZER = make()


def join(batch: SpeechBatch, slot: int, text: str, **settings: Any) -> Script:
    script = Script(SYNTHESIZER.frontend, text)
    batch.join(slot, script, SYNTHESIZER.settings_of(**settings))
    return script


def finish(batch: SpeechBatch, slot: int, limit: int = 3000) -> list[AudioChunk]:
    chunks: list[AudioChunk] = []
    for _ in range(limit):
        chunks += batch.tick().get(slot, [])
        if batch.done(slot) or slot in batch.failures:
            return chunks
    raise AssertionError("the slot never ends")


def sound(chunks: list[AudioChunk]) -> np.ndarray:
    return np.concatenate([c.samples for c in chunks])


neighbours = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 3), st.sampled_from(TEXTS), st.integers(0, 9), st.integers(0, 15)),
    max_size=4,
)


@few
@given(events=neighbours, start=st.integers(0, 5), held=st.sets(st.integers(0, 30), max_size=8))
def test_an_answer_is_bit_identical_in_any_company(
    events: list[tuple[int, int, str, int, int]], start: int, held: set[int]
) -> None:
    """Neighbours join at random ticks and leave after some; the answer starts late and is held now and then."""
    alone = SYNTHESIZER.batch(4, (2, 4))
    join(alone, 0, TEXTS[1], seed=5, voice="Bob")
    expected = finish(alone, 0)
    batch, chunks = SYNTHESIZER.batch(4, (2, 4)), []
    leaving: dict[int, int] = {}
    for tick in range(3000):
        if tick == start:
            join(batch, 0, TEXTS[1], seed=5, voice="Bob")
        for at, slot, text, seed, stay in events:
            if at == tick and batch.answers[slot] is None:
                join(batch, slot, text, seed=seed, codebooks=seed % 3 + 1)
                leaving[slot] = tick + stay
        for slot in [s for s, when in leaving.items() if when == tick]:
            batch.leave(slot)
            del leaving[slot]
        chunks += batch.tick({0} if tick in held else ()).get(0, [])
        assert not batch.failures
        if batch.done(0):
            break
    assert [len(c.samples) for c in chunks] == [len(c.samples) for c in expected]
    assert np.array_equal(sound(chunks), sound(expected))
    assert [c.words for c in chunks] == [c.words for c in expected]


@pytest.mark.parametrize("pattern", ["parallel", "delay:0,1,2"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_slot_of_many_equals_the_stream_of_one(pattern: str, text: str) -> None:
    """Codes are equal (the words' times say so), samples within law 1: another batch size rounds otherwise."""
    synthesizer = make(pattern)
    speech = synthesizer.say(text, seed=3)
    batch = synthesizer.batch(3)
    batch.join(2, Script(synthesizer.frontend, text), synthesizer.settings_of(seed=3))
    chunks = finish(batch, 2)
    assert [p for c in chunks for p in c.phones] == speech.phones
    assert [w for c in chunks for w in c.words] == speech.words
    assert sound(chunks).shape == speech.samples.shape
    assert np.abs(sound(chunks) - speech.samples).max() <= TOLERANCE
    progress = [c.progress for c in chunks]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


def test_chunks_lie_where_the_schedule_says() -> None:
    batch = SYNTHESIZER.batch(1, (1, 3))
    join(batch, 0, "Hello world.", seed=1)
    sizes = [len(c.samples) // SYNTHESIZER.codec.frame_size for c in finish(batch, 0)]
    assert sizes[1] == 3
    assert set(sizes[1:-2]) <= {3}


def test_slots_of_one_pace_are_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three answers that joined at different ticks soon share the decoder's calls."""
    batch = SYNTHESIZER.batch(3, (4,))
    calls: list[int] = []
    decode = batch.decoder.decode
    monkeypatch.setattr(batch.decoder, "decode", lambda frames: (calls.append(len(frames)), decode(frames))[1])
    for slot in range(3):
        join(batch, slot, "The quick brown fox jumps over the lazy dog, and on it goes and goes.", seed=slot)
        batch.tick()
    for _ in range(24):
        batch.tick()
    assert calls[-3:] == [3, 3, 3]


@pytest.mark.parametrize("after", [0, 1, 7, 30])
def test_the_second_request_starts_as_fast_as_the_first(after: int) -> None:
    """CosyVoice PR 1849: a request that came while another was spoken got its first chunk late."""
    text = "The quick brown fox jumps over the lazy dog, and on it goes and goes."

    def ticks(batch: SpeechBatch, slot: int) -> int:
        join(batch, slot, text, seed=4)
        return next(i for i in range(1, 200) if batch.tick().get(slot))

    batch = SYNTHESIZER.batch(2)
    first = ticks(batch, 0)
    for _ in range(after):
        batch.tick()
    assert ticks(batch, 1) <= 1.1 * first


def raising(times: int, error: Exception, real: Callable[..., Any]) -> Callable[..., Any]:
    left = [times]

    def call(*arguments: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return real(*arguments, **named)

    return call


@pytest.mark.parametrize("part", ["lm", "codec"])
@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError()])
def test_a_step_that_fails_once_is_made_again_and_nobody_hears_it(
    monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    expected = []
    for fault in (False, True):
        batch = SYNTHESIZER.batch(2, (2,))
        for slot in range(2):
            join(batch, slot, "Hello world.", seed=slot)
        chunks: list[AudioChunk] = []
        for tick in range(400):
            if fault and tick == 5:
                if part == "lm":
                    target, name = SYNTHESIZER.lm, "readout"  # late in the step: all of it must be undone
                else:
                    target, name = SYNTHESIZER.codec, "decode"
                monkeypatch.setattr(target, name, raising(1, error, getattr(target, name)))
            chunks += batch.tick().get(0, [])
            assert not batch.failures
            if batch.done(0):
                break
        expected.append(sound(chunks))
        assert batch.retries == int(fault)
    assert np.array_equal(*expected)


def test_the_slot_to_blame_fails_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slot makes every step of the batch raise: it is found, the neighbour's answer is the same bits."""
    reference = SYNTHESIZER.batch(3, (2,))
    join(reference, 0, "Hello world.", seed=0)
    expected = sound(finish(reference, 0))
    batch = SYNTHESIZER.batch(3, (2,))
    for slot in range(3):
        join(batch, slot, "Hello world.", seed=slot)
    run = SYNTHESIZER.lm.run

    def poisoned(chunks: Any, state: Any) -> Any:
        if 1 in chunks:
            raise ValueError("slot 1 is cursed")
        return run(chunks, state)

    monkeypatch.setattr(SYNTHESIZER.lm, "run", poisoned)
    chunks = batch.tick().get(0, [])
    assert set(batch.failures) == {1}
    batch.leave(1)
    assert np.array_equal(sound(chunks + finish(batch, 0)), expected)
    assert not batch.failures


def test_a_plan_that_cannot_take_its_codes_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = SYNTHESIZER.batch(2, (2,))
    for slot in range(2):
        join(batch, slot, "Hello world.", seed=slot)
    batch.tick()
    monkeypatch.setattr(batch.generation.plans[1], "commit", raising(1, IndexError("no such phone"), lambda *_: None))
    batch.tick()
    assert isinstance(batch.failures[1], IndexError)
    assert 0 not in batch.failures
    batch.leave(1)
    assert len(sound(finish(batch, 0)))


def test_text_that_arrives_late_lets_its_slot_wait() -> None:
    batch = SYNTHESIZER.batch(2)
    script = Script(SYNTHESIZER.frontend)
    batch.join(0, script, SYNTHESIZER.settings_of(seed=3))
    assert batch.waits(0)
    assert batch.tick() == {}
    chunks: list[AudioChunk] = []
    for piece in ("Is it", " you? G", "ood."):
        script.push(piece)
        for _ in range(300):
            if batch.waits(0):
                break
            chunks += batch.tick().get(0, [])
    assert batch.waits(0)
    assert all(c.progress == 0 for c in chunks)
    script.close()
    chunks += finish(batch, 0)
    assert np.abs(sound(chunks) - SYNTHESIZER.say("Is it you? Good.", seed=3).samples).max() <= TOLERANCE


@pytest.mark.parametrize("text", ["", "...", "?"])
def test_a_text_without_words_fails_its_slot(text: str) -> None:
    batch = SYNTHESIZER.batch(2)
    join(batch, 0, text)
    join(batch, 1, "No.")
    batch.tick()
    assert isinstance(batch.failures[0], BadInput)
    batch.leave(0)
    assert len(sound(finish(batch, 1)))


def test_the_batch_decoder_refuses_unequal_shapes_and_taken_slots() -> None:
    decoder = BatchDecoder(SYNTHESIZER.codec, 2)
    assert decoder.decode({}) == {}
    assert decoder.flush([]) == {}
    with pytest.raises(BadInput):
        decoder.decode({0: torch.zeros(3, 1, dtype=torch.long), 1: torch.zeros(3, 2, dtype=torch.long)})
    batch = SYNTHESIZER.batch()
    join(batch, 0, "No.")
    with pytest.raises(BadInput, match="taken"):
        join(batch, 0, "No.")


def test_a_decoder_slot_can_be_used_again() -> None:
    codes = torch.randint(12, (3, 6), generator=torch.Generator().manual_seed(0))
    alone = AcousticDecoder(SYNTHESIZER.codec).push(codes, final=True)
    decoder = BatchDecoder(SYNTHESIZER.codec, 2)
    decoder.decode({0: codes[:, :3], 1: codes[:, 3:]})
    decoder.reset(1)
    again = np.concatenate([decoder.decode({1: codes})[1], decoder.flush([1])[1]])
    assert again.shape == alone.shape
    assert np.abs(again - alone).max() <= TOLERANCE


WORDS = ("well", "I think", "so", "the 1,250 men", "Mr.", "went home", "a", "it is", "e.g. here", "longer words follow")
MARKS = (" ", ", ", "; ", ". ", "? ", " — ", ": ")
texts = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(MARKS)), min_size=1, max_size=14).map(
    lambda parts: "".join(word + mark for word, mark in parts)
)


def read_out(script: Script) -> list[str]:
    said = []
    while (utterance := script.next()) is not None:
        said.append(utterance.text)
    return said


@few
@given(text=texts, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_clauses_do_not_depend_on_how_the_text_arrived(text: str, sizes: list[int]) -> None:
    whole = read_out(Script(SYNTHESIZER.frontend, text, by="clause"))
    script, said, at = Script(SYNTHESIZER.frontend, by="clause"), [], 0
    for i in range(len(text)):
        size = sizes[i % len(sizes)]
        script.push(text[at : at + size])
        at += size
        said += read_out(script)
    script.close()
    assert said + read_out(script) == whole
    assert " ".join(whole).split() == " ".join(read_out(Script(SYNTHESIZER.frontend, text))).split()


def test_a_clause_is_spoken_before_its_sentence_has_ended() -> None:
    script = Script(SYNTHESIZER.frontend, by="clause")
    script.push("When the sun went down, the birch")
    assert script.waits
    script.push(" canoe slid")
    first = script.next()
    assert first is not None
    assert first.text == "When the sun went down,"
    assert script.next() is None
    assert script.waits


def arriving(batch: SpeechBatch, pieces: list[str], ticks: list[int]) -> tuple[list[AudioChunk], list[int]]:
    """Speaks pieces of text word by word, with so many ticks after each; also how many chunks each piece had made."""
    script = Script(SYNTHESIZER.frontend, by="word")
    batch.join(0, script, SYNTHESIZER.settings_of(seed=3))
    chunks, made = [], []
    for i, piece in enumerate(pieces):
        script.push(piece)
        for _ in range(ticks[i % len(ticks)]):
            chunks += batch.tick().get(0, [])
        made.append(len(chunks))
    script.close()
    return chunks + finish(batch, 0), made


@few
@given(
    text=texts,
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    ticks=st.lists(st.integers(0, 60), min_size=1, max_size=5),
)
def test_word_by_word_does_not_depend_on_how_the_text_arrived(text: str, sizes: list[int], ticks: list[int]) -> None:
    pieces, at = [], 0
    while at < len(text):
        pieces.append(text[at : at + sizes[len(pieces) % len(sizes)]])
        at += len(pieces[-1])
    together, _ = arriving(SYNTHESIZER.batch(1, (1, 2)), [text], [0])
    slowly, _ = arriving(SYNTHESIZER.batch(1, (1, 2)), pieces, ticks)
    assert np.array_equal(sound(slowly), sound(together))
    words = [word.text for chunk in slowly for word in chunk.words]
    assert words == [word.text for chunk in together for word in chunk.words]
    assert words == [word.text for u in SYNTHESIZER.frontend(text) for word in u.words]


def test_a_word_is_spoken_while_its_sentence_arrives() -> None:
    words = ["When", "the", "sun", "went", "down", "the", "birch", "canoe", "slid", "on", "the", "smooth", "planks."]
    chunks, made = arriving(SYNTHESIZER.batch(1, (1, 2)), [word + " " for word in words], [80])
    first = next(i for i, count in enumerate(made) if count)
    assert first <= 3
    assert made == sorted(made)
    assert len(set(made)) > 6  # it goes on with every word or two, and waits in between
    spans = [word for chunk in chunks for word in chunk.words]
    assert [span.text for span in spans] == [word.strip(".") for word in words]
    assert all(a.end <= b.start + 1e-9 for a, b in pairwise(spans))


def test_a_reading_that_later_words_change_keeps_what_was_said() -> None:
    """ "read" is settled before "yesterday" makes it the past; dates and sums are read in one piece."""
    text = "I will read 5 dollars and 20 cents on May 3rd 2021 to Dr. Smith at 3:30 pm, he read it yesterday."
    chunks, _ = arriving(SYNTHESIZER.batch(1, (1, 2)), list(text), [1])
    said = " ".join(word.text for chunk in chunks for word in chunk.words)
    for word in ("will", "dollars", "May", "Smith", "yesterday"):
        assert said.count(word) == 1
