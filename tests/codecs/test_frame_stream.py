"""Frame by frame: the recorded steps of a codec give the very bits of its streams, whoever moves and whoever rests."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quaver.codecs.frame_stream import FrameStream
from quaver.codecs.native import XCodec
from quaver.errors import BadInput

from ..laws import few, randn
from .test_native import FRAME, frames_of, make

SLOTS = 3


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("bottleneck", ["rvq", "vae"])
def test_both_directions_are_recorded_and_give_the_bits_of_the_codec(bottleneck: str) -> None:
    codec = make(bottleneck)
    stream = FrameStream(codec)
    assert stream.is_recorded
    with torch.inference_mode():
        state = codec.init_state(1)
        for i in range(6):
            audio = 0.3 * randn(1, 1, FRAME, seed=i)
            frames = codec.encode(audio, state=state)[0]
            assert torch.equal(stream.encode(audio), frames)
            assert torch.equal(stream.decode(frames), codec.decode(frames, state))
        assert torch.equal(stream.flush(), codec.flush(state))


@cache
def streams() -> tuple[FrameStream, FrameStream]:
    """A plain and a recorded one of three slots (a recording takes longer than the test)."""
    made = [FrameStream(make(), SLOTS, codebooks=2, recorded=recorded) for recorded in (False, True)]
    assert [stream.is_recorded for stream in made] == [False, True]
    return made[0], made[1]


@few
@given(masks=st.lists(st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS), min_size=1, max_size=9))
def test_slots_that_rest_start_anew_or_are_restored_are_recorded_as_they_run(masks: list[list[bool]]) -> None:
    plain, recorded = streams()
    for stream in (plain, recorded):
        stream.state.reset()
    kept = None
    for i, mask in enumerate(masks):
        moving, audio = torch.tensor(mask), 0.3 * randn(SLOTS, 1, FRAME, seed=i)
        with torch.inference_mode():
            if i == 3:
                kept = recorded.state.save()
            for stream in (plain, recorded):
                if i == 3:
                    stream.state.reset(torch.tensor([False, True, False]))
                if i == 6 and kept is not None:
                    stream.state.restore(kept)
        ours, theirs = (stream.encode(audio, moving) for stream in (recorded, plain))
        assert torch.equal(ours[moving], theirs[moving])
        sounds = [stream.decode(theirs, moving) for stream in (recorded, plain)]
        assert torch.equal(sounds[0][moving], sounds[1][moving])
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(plain.state.tensors(), recorded.state.tensors(), strict=True)
    )


def test_a_codec_with_other_weights_is_recorded_anew() -> None:
    """What the quantizer keeps of its codebook (the codes' squared lengths) follows the codebook."""
    codec = XCodec(make().config).eval()
    codec.load_state_dict(make().state_dict())
    audio = 0.3 * randn(1, 1, FRAME)
    first = codec.encode(audio)[0]
    codec.quantizer.codebook.mul_(torch.linspace(0.1, 9, 16)[:, None])  # type: ignore[union-attr,operator]
    second = codec.encode(audio)[0]
    assert not torch.equal(first, second)
    assert torch.equal(FrameStream(codec).encode(audio), second)


def test_what_is_no_frame_is_refused() -> None:
    codec = make()
    stream = FrameStream(codec, 2, codebooks=2)
    for audio in (randn(2, 1, FRAME + 1), randn(1, 1, FRAME), randn(2, 2, FRAME), torch.full((2, 1, FRAME), torch.nan)):
        with pytest.raises(BadInput):
            stream.encode(audio)
    for frames in (frames_of(codec, 1), frames_of(codec, 2)[:, :2], torch.full((2, 2, 1), 16)):
        with pytest.raises(BadInput):
            stream.decode(frames)
    with pytest.raises(BadInput, match="codebooks"):
        FrameStream(codec, codebooks=4)
    with pytest.raises(BadInput, match="cannot stream"):
        FrameStream(make(semantic="teacher_input"))
