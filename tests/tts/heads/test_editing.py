"""Speech editing: what is changed, and that nothing else is. The models are real and tiny, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.codecs.semantic import SemanticConfig, SemanticTokenizer
from quaver.errors import BadInput
from quaver.training.tasks.ctc import ctc_symbols
from quaver.tts.ardit import Ardit, ArditConfig
from quaver.tts.editing import BORDER, MARGIN, Change, Editor, parse_change

from ...laws import randn, randomised
from .test_ardit import CONFIG

TEXT = "Bring the red book to me. I will read it to the two of you."
VAE: dict[str, Any] = {
    "width": 8,
    "hidden": 8,
    "encoder_blocks": (1, 1),
    "decoder_blocks": (1, 1),
    "bottleneck": "vae",
    "dim": 6,
    "semantic": "none",
}


@pytest.fixture(scope="module")
def editor() -> Editor:
    torch.manual_seed(0)
    backbone = {**CONFIG["backbone"], "window": 80, "slack": 60}
    lm = randomised(Ardit(ArditConfig.model_validate({**CONFIG, "backbone": backbone})), scale=0.2)
    codec = randomised(XCodec(XCodecConfig.model_validate(VAE)), scale=0.1)
    small = {"width": 8, "hidden": 8, "low_blocks": 1, "middle_blocks": 1, "upper_blocks": 1}
    aligner = randomised(SemanticTokenizer(SemanticConfig.model_validate({**small, "symbols": ctc_symbols()})))
    return Editor(lm, codec, aligner)


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    return 0.1 * randn(24_000 * 5, seed=3).numpy()


def test_only_the_words_change(editor: Editor, recording: np.ndarray) -> None:
    edited = editor.edit(recording, TEXT, [Change("red book", "little blue cup")], trusted=0.0)
    rate, whole, (span,) = edited.sample_rate, edited.resynthesis, edited.spans
    assert edited.transcript == "Bring the little blue cup to me. I will read it to the two of you."
    assert len(whole) == len(recording)
    before = int((span.old[0] - MARGIN) * rate)
    assert np.array_equal(edited.samples[:before], whole[:before])
    after = len(whole) - int((span.old[1] + MARGIN) * rate)
    assert np.array_equal(edited.samples[-after:], whole[-after:])
    assert before > 0
    assert after > 0
    inside = slice(int((span.new[0] + MARGIN) * rate), int((span.new[0] + MARGIN) * rate) + 400)
    assert not np.allclose(edited.samples[inside], whole[inside])  # and the words themselves are others
    assert span.new[0] - span.old[0] == pytest.approx(0, abs=1e-6)
    assert len(edited.samples) - len(whole) == pytest.approx(
        (span.new[1] - span.new[0] - span.old[1] + span.old[0]) * rate, abs=2
    )


def test_the_same_seed_says_the_same(editor: Editor, recording: np.ndarray) -> None:
    change = [Change("read", "write")]
    one, same, other = (editor.edit(recording, TEXT, change, trusted=0.0, seed=s).samples for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_candidate_that_is_understood_best_is_taken(editor: Editor, recording: np.ndarray) -> None:
    change = [Change("red book", "little blue cup")]
    scores, likeness = [], editor._likeness

    def kept(*arguments: Any) -> float:
        scores.append(likeness(*arguments))
        return scores[-1]

    editor._likeness = kept  # type: ignore[method-assign]
    try:
        best = editor.edit(recording, TEXT, change, trusted=0.0, candidates=3, seed=5)
    finally:
        editor._likeness = likeness  # type: ignore[method-assign]
    assert len(set(scores)) == 3
    alone = [editor.edit(recording, TEXT, change, trusted=0.0, candidates=1, seed=5 + i).samples for i in range(3)]
    place = scores.index(max(scores))
    # Each candidate is what it would be alone, up to the rounding of a larger batch.
    same = [one.shape == best.samples.shape and np.allclose(best.samples, one, atol=1e-3) for one in alone]
    assert same.index(True) == place
    with pytest.raises(BadInput, match="candidates"):
        editor.edit(recording, TEXT, change, candidates=0)


def test_several_changes_and_cuts(editor: Editor, recording: np.ndarray) -> None:
    changes = [Change("read it to", "sing"), Change("red", "")]
    edited = editor.edit(recording, TEXT, changes, trusted=0.0)
    assert edited.transcript == "Bring the book to me. I will sing the two of you."
    assert [s.change.old for s in edited.spans] == ["red", "read it to"]
    gone, whole = edited.spans[0], edited.resynthesis
    assert gone.new[1] - gone.new[0] == pytest.approx(
        2 * BORDER / 25, abs=MARGIN
    )  # what was on both sides, joined anew
    first = int((gone.old[0] - MARGIN) * edited.sample_rate)
    assert np.array_equal(edited.samples[:first], whole[:first])


def test_the_first_and_the_last_word_can_change(editor: Editor, recording: np.ndarray) -> None:
    edited = editor.edit(recording, TEXT, [Change("Bring", "Carry"), Change("you", "us")], trusted=0.0)
    assert edited.transcript == "Carry the red book to me. I will read it to the two of us."
    assert np.isfinite(edited.samples).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Change("green book", "x"), "is not in the transcript: Bring the red book"),
        (Change("to", "for"), "2 times in the transcript"),
        (Change("red", "!!!"), "nothing can be read aloud"),
    ],
)
def test_what_cannot_be_changed_is_said(editor: Editor, recording: np.ndarray, change: Change, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        editor.edit(recording, TEXT, [change], trusted=0.0)


def test_changes_that_touch_are_refused(editor: Editor, recording: np.ndarray) -> None:
    for other in ("red book", "book"):
        with pytest.raises(BadInput, match="touch or overlap"):
            editor.edit(recording, TEXT, [Change("the red", "a"), Change(other, "pen")], trusted=0.0)


def test_a_transcript_of_something_else_is_refused_with_its_score(editor: Editor, recording: np.ndarray) -> None:
    with pytest.raises(BadInput, match=r"does not match the recording: it scores 0\.\d\d"):
        editor.edit(recording, TEXT, [Change("red", "blue")], trusted=1.0)
    with pytest.raises(BadInput, match="more to say than fits"):
        editor.edit(recording[:9600], TEXT, [Change("red", "blue")])


def test_a_change_is_two_sides_of_an_arrow() -> None:
    assert parse_change(" old words => new ") == Change("old words", "new")
    assert parse_change("old=>") == Change("old", "")
    for bad in ("old", "=>new", " =>"):
        with pytest.raises(BadInput, match="is no change"):
            parse_change(bad)
