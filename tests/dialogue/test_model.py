"""The duplex model: laws 1-6, its special ids, its loss, and what its text delay makes of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quaver.dialogue.depth import DepthTransformer
from quaver.dialogue.model import DuplexModel, LossWeights, delays_of
from quaver.errors import BadInput

from ..laws import TOLERANCE, chunkings, few, many, split
from .tiny import DEPTH, random_codes, tiny_config, tiny_model

DELAYS = st.lists(st.integers(0, 4), min_size=6, max_size=6).map(lambda d: (*(x - min(d) for x in d),))


@given(delays=DELAYS, frames=st.integers(1, 9), seed=st.integers(0, 99))
@many
def test_undelay_is_the_inverse_of_delay(delays: tuple[int, ...], frames: int, seed: int) -> None:
    model = tiny_model(delays=delays)
    codes = random_codes(model, 2, frames, seed)
    steps = model.delay(codes)
    assert steps.shape[-1] == frames + max(delays)
    assert torch.equal(model.undelay(steps), codes)
    for stream, delay in enumerate(delays):
        assert bool((steps[:, stream, :delay] == model.initial[stream]).all())
    assert int((steps == model.initial[:, None]).sum()) == 2 * 6 * max(delays)  # and nowhere else


@given(lengths=chunkings(), delays=DELAYS, seed=st.integers(0, 99))
@few
def test_streaming_equals_offline(lengths: list[int], delays: tuple[int, ...], seed: int) -> None:
    model = tiny_model(seed, delays=delays)
    inputs = model.shifted(random_codes(model, 2, sum(lengths), seed))
    with torch.inference_mode():
        state = model.init_state(2)
        streamed = torch.cat([model.hidden(chunk, state) for chunk in split(inputs, lengths)], 1)
        assert (streamed - model.hidden(inputs)).abs().max() < TOLERANCE


@pytest.mark.parametrize("changes", [{}, {"schedule": (0, 1, 1)}, {"predicted": 5}, {"own": 2, "user": 0}])
def test_teacher_forced_equals_stepped(changes: dict) -> None:
    """Law 5 for both transformers: every level of every column, drawn one after the other."""
    model = tiny_model(1, **changes)
    codes = random_codes(model, 3, 10)
    steps = model.delay(codes)[..., :10]
    with torch.inference_mode():
        logits, state = model(codes), model.init_state(3)
        inputs = model.shifted(steps)
        for column in range(10):
            hidden = model.hidden(inputs[..., column : column + 1], state)[:, 0]
            assert (model.text_head(hidden) - logits.text[:, column]).abs().max() < TOLERANCE
            cache: list = []
            for level in range(model.config.levels):
                y = model.depth.step(model.depth_input(hidden, level, steps[:, level, column]), level, cache)
                assert (model.depth_heads[level](y) - logits.audio[:, column, level]).abs().max() < TOLERANCE


@given(at=st.integers(0, 9), stream=st.integers(0, 5))
@few
def test_the_future_never_changes_the_past(at: int, stream: int) -> None:
    model = tiny_model(2, delays=(0,) * 6)
    codes = random_codes(model, 1, 10)
    other = codes.clone()
    other[0, stream, at] = (other[0, stream, at] + 1) % 8
    with torch.inference_mode():
        a, b = model(codes), model(other)
    assert torch.equal(a.text[:, : at + 1], b.text[:, : at + 1])  # the text of a column sees the columns before it
    assert torch.equal(a.audio[:, :at], b.audio[:, :at])
    # Within its own column a code is seen by the levels above it only.
    assert torch.equal(a.audio[:, at, : min(stream, 3)], b.audio[:, at, : min(stream, 3)])
    if at < 9:
        assert not torch.equal(a.text[:, at + 1], b.text[:, at + 1])


def test_rows_do_not_depend_on_their_neighbours() -> None:
    model = tiny_model(3)
    codes = random_codes(model, 4, 12)
    with torch.inference_mode():
        together = model(codes)
        codes[1:] = random_codes(model, 3, 12, seed=9)
        other = model(codes)
    assert torch.equal(together.text[0], other.text[0])
    assert torch.equal(together.audio[0], other.audio[0])


def test_a_stream_that_is_absent_adds_nothing_and_costs_nothing() -> None:
    model = tiny_model(4)
    codes = random_codes(model, 2, 8)
    inputs = model.shifted(model.delay(codes)[..., :8])
    inputs[:, 5] = model.nothing
    with torch.no_grad():
        before = model.hidden(inputs)
        model.audio_table.weight[4 * 9 :] += 1  # the rows of the last stream
        assert torch.equal(model.hidden(inputs), before)
    text_only = codes.clone()
    text_only[:, 1:] = model.nothing
    losses = model.loss(text_only)
    assert losses["audio"].item() == 0
    assert losses["loss"].item() == pytest.approx(losses["text"].item())


def test_the_loss_is_moshis() -> None:
    """Against its definition, written out: CE(text) with cheap padding + sum(alpha CE) / sum(alpha)."""
    model = tiny_model(5)
    codes = random_codes(model, 2, 7)
    codes[0, 0, :4] = model.config.pad
    weights = LossWeights(semantic=100, acoustic=1, padding=0.5)
    logits, steps = model(codes), model.delay(codes)[..., :7]
    total = count = 0.0
    for b in range(2):
        for t in range(7):
            token = int(steps[b, 0, t])
            share = 0.5 if token in (model.config.pad, model.config.epad) else 1.0
            total -= share * float(logits.text[b, t].log_softmax(-1)[token])
            count += share
    audio = 0.0
    for level, alpha in enumerate([100, 1, 1]):
        each = [
            -float(logits.audio[b, t, level].log_softmax(-1)[steps[b, 1 + level, t]])
            for b in range(2)
            for t in range(7)
            if steps[b, 1 + level, t] < 8
        ]
        audio += alpha * sum(each) / len(each)
    found = model.loss(codes, weights)
    assert float(found["text"]) == pytest.approx(total / count, rel=1e-4)
    assert float(found["audio"]) == pytest.approx(audio / 102, rel=1e-4)
    assert float(found["loss"]) == pytest.approx(total / count + audio / 102, rel=1e-4)


def test_the_users_words_are_written_down_late() -> None:
    """Words that follow from the user's codes are learnt at the head's delay, and at none that is before them."""
    model, late = tiny_model(2, heard=1), 1
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(120):
        codes = random_codes(model, 8, 12, step)
        losses = model.loss(codes, LossWeights(text=0, audio=0), heard=codes[:, 4])
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    codes = random_codes(model, 4, 12, 1000)
    with torch.inference_mode():
        hidden = model.hidden(model.shifted(model.delay(codes)[..., :12]))
        written = model.heard_head(hidden).argmax(-1)
        absent = model.loss(codes, heard=torch.full_like(codes[:, 4], model.nothing))
    assert float((written[:, 1 + late :] == codes[:, 4, : -1 - late]).float().mean()) > 0.9
    assert float(losses["heard"]) < 0.5
    assert float(absent["heard"]) == 0
    assert "heard" not in model.loss(codes)


def test_the_special_ids() -> None:
    model = tiny_model()
    assert (model.text_initial, model.audio_initial) == (12, 8)
    assert model.text_head.out_features == 12  # initial tokens have an embedding but cannot be drawn
    assert model.text_table.num_embeddings == 13
    assert all(head.out_features == 8 for head in model.depth_heads)
    assert len(model.depth_audio) == model.config.levels - 1


def test_a_shared_schedule_shares_weights() -> None:
    own, shared = DepthTransformer(DEPTH, range(3)), DepthTransformer(DEPTH, (0, 1, 1))
    count = [sum(p.numel() for n, p in m.named_parameters() if "norm" not in n) for m in (own, shared)]
    assert count[1] * 3 == count[0] * 2


def test_the_text_delay_is_the_one_setting() -> None:
    assert delays_of(3, 2) == (0, 0, 1, 1, 0, 1)
    assert delays_of(3, 2, text=5) == (5, 0, 1, 1, 0, 1)
    assert delays_of(3, 2, text=-4, acoustic=2) == (0, 4, 6, 6, 4, 6)
    config = tiny_config()
    assert config.with_text_delay(6).stream_delays == (6, 0, 1, 1, 0, 1)
    assert config.with_text_delay(-2).stream_delays == (0, 2, 3, 3, 2, 3)
    model, later = DuplexModel(config), DuplexModel(config.with_text_delay(6))
    later.load_state_dict(model.state_dict())  # the same network


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"own": 0, "user": 0}, "without audio"),
        ({"delays": (1, 1, 1, 1, 1, 1)}, "delays"),
        ({"delays": (0, 1)}, "delays"),
        ({"predicted": 9}, "predict"),
        ({"schedule": (0, 1)}, "schedule"),
        ({"pad": 0}, "pad"),
        ({"pad": 12}, "pad"),
    ],
)
def test_inconsistent_sizes_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        tiny_config(**changes)


@pytest.mark.parametrize("token", [13, -2])
@pytest.mark.parametrize("stream", [0, 4])
def test_tokens_outside_the_vocabulary_are_refused(token: int, stream: int) -> None:
    model = tiny_model()
    codes = random_codes(model, 1, 4)
    codes[0, stream, 2] = token
    with pytest.raises(BadInput, match=f"stream {stream} holds"):
        model.hidden(codes)


def train(model: DuplexModel, codes: torch.Tensor, steps: int, lr: float = 1e-2) -> float:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        loss = model.loss(codes, LossWeights(semantic=1))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    return float(loss.detach())


@pytest.mark.long
def test_one_batch_can_be_learnt_by_heart() -> None:
    torch.manual_seed(0)
    model = DuplexModel(tiny_config())
    codes = random_codes(model, 2, 12)
    assert train(model, codes, 150) < 0.1


@pytest.mark.parametrize(("delay", "learns"), [(2, True), (0, False)])
def test_later_text_can_be_read_off_the_users_voice(delay: int, learns: bool) -> None:
    """The recogniser: the text is a function of the user's code in the same frame. With the text two frames later it
    is known before it is due; with no delay it cannot be."""
    torch.manual_seed(0)
    model = DuplexModel(tiny_config(own=0, user=1).with_text_delay(delay))

    def batch(seed: int) -> torch.Tensor:
        codes = random_codes(model, 8, 20, seed)
        codes[:, 0] = codes[:, 1] + 4
        return codes

    for seed in range(60):
        train(model, batch(seed), 1)
    unseen = batch(1000)
    loss = float(model.loss(unseen)["text"].detach())
    assert (loss < 0.5) == learns, loss


def test_the_loss_of_some_columns_is_that_of_all_when_all_are_named() -> None:
    model = tiny_model(3)
    codes = random_codes(model, 2, 12)
    whole, named = model.loss(codes), model.loss(codes, voiced=torch.ones(2, 12, dtype=torch.bool))
    for name, value in whole.items():
        torch.testing.assert_close(named[name], value)
    one = torch.zeros(2, 12, dtype=torch.bool)
    one[1, 5] = True
    logits = model(codes).audio[1, 5]
    wanted = torch.nn.functional.cross_entropy(
        logits, model.delay(codes)[1, 1 : 1 + model.config.levels, 5], reduction="none"
    )
    torch.testing.assert_close(model.loss(codes, voiced=one)["levels"], wanted)


def test_a_word_begins_as_the_same_word_whoever_says_it() -> None:
    model = DuplexModel(tiny_config(heard=2, heard_input=True))
    torch.testing.assert_close(model.heard_table.weight, model.text_table.weight[:-1])
    record = torch.randint(12, (2, 14), generator=torch.Generator().manual_seed(3))
    codes = random_codes(model, 2, 14)
    alone = model.loss(codes, misheard=record, sound=False)
    assert set(alone) == {"loss", "text"}  # a record that is read is not trained on
    assert not torch.equal(alone["text"], model.loss(codes, sound=False)["text"])


def test_what_was_written_down_is_an_input_of_the_next_column() -> None:
    model = tiny_model(5, heard=2, heard_input=True)
    codes = random_codes(model, 2, 14)
    heard = torch.randint(12, (2, 14), generator=torch.Generator().manual_seed(3))
    whole = model(codes, heard)
    other = heard.clone()
    other[:, 6] = (other[:, 6] + 1) % 12  # written down in column 6 + 1 + 2, an input of column 10
    changed = model(codes, other)
    assert torch.equal(whole.text[:, :10], changed.text[:, :10])
    assert not torch.allclose(whole.text[:, 10], changed.text[:, 10])
    columns = model.delay(codes)[..., :14]
    inputs, noted = model.shifted(columns), torch.nn.functional.pad(heard, (4, 0), value=-1)[:, :14]
    torch.testing.assert_close(model.text_head(model.hidden(inputs, noted=noted)), whole.text)
    state = model.init_state(2)
    stepped = [model.hidden(inputs[..., t : t + 1], state, noted[:, t : t + 1]) for t in range(14)]
    torch.testing.assert_close(model.text_head(torch.cat(stepped, 1)), whole.text, atol=1e-5, rtol=1e-4)
    told = model.loss(codes, heard=heard, misheard=other)["text"]
    assert not torch.allclose(told, model.loss(codes, heard=heard)["text"])
    with pytest.raises(ValueError, match="heard_input"):
        tiny_config(heard_input=True)
