"""The laws over every system of the CosyVoice family: prefix, interleave, cross; our backbone and a Qwen2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quaver.errors import BadInput, ConfigError
from quaver.tts.cross import beta_binomial_log_prior
from quaver.tts.generate import Generation
from quaver.tts.guidance import GuidedLM
from quaver.tts.layouts import FILL, SPEECH, TASK, sequence
from quaver.tts.layouts import TEXT as TEXT_KIND
from quaver.tts.sampling import SamplingConfig
from quaver.tts.token_lm import PHONE_VOCAB, TokenLM, TokenLMConfig, phone_text
from quaver.tts.token_plan import TokenPlan, TokenRequest, parse_schedule

from ..laws import TOLERANCE, few, many
from .tokens import SYSTEMS, TEXT, speak, taught, token_lm

LMS = {name: token_lm(name) for name in SYSTEMS}
HOT = SamplingConfig(temperature=1.5, top_k=0)


def watch(lm: TokenLM, seen: list[Tensor]) -> Any:
    """Collects the hidden states that the main model draws from."""
    original = lm.head.sample

    def sample(hidden: Tensor, *arguments: Any, **more: Any) -> Tensor:
        seen.append(hidden.clone())
        return original(hidden, *arguments, **more)

    lm.head.sample = sample  # type: ignore[method-assign]
    return lambda: setattr(lm.head, "sample", original)


# -- law 5 and law 1 --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", SYSTEMS)
def test_teacher_forced_equals_step_by_step(system: str) -> None:
    lm, seen = LMS[system], []
    undo = watch(lm, seen)
    try:
        frames, plan = speak(lm, TokenRequest(TEXT, sampling=HOT, seed=3, least=12))
    finally:
        undo()
    hidden, steps = taught(lm, plan)
    drawn = torch.cat(seen)
    assert len(drawn) == len(steps) == len(frames) + max(lm.pattern.extra, 1)
    assert torch.allclose(hidden, drawn, atol=TOLERANCE)
    for a, b in zip(lm.head.logits(hidden, steps), lm.head.logits(drawn, steps), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("system", SYSTEMS)
@few
@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_a_backbone_streams_as_it_runs_whole(system: str, sizes: list[int]) -> None:
    lm = LMS[system]
    x = torch.randn(2, sum(sizes), lm.width, generator=torch.Generator().manual_seed(0))
    state = lm.init_state(2).child("backbone")
    with torch.no_grad():
        if lm.config.layout == "cross":
            memory = torch.randn(2, 6, lm.width, generator=torch.Generator().manual_seed(1))
            lengths = torch.tensor([6, 4])
            whole = lm.backbone(x, memory, lengths)[0]  # type: ignore[operator]
            for slot in range(2):
                lm.backbone.remember(memory[slot, : lengths[slot]], state, slot)  # type: ignore[operator]
            parts = [lm.backbone(c, state=state)[0] for c in x.split(sizes, 1)]  # type: ignore[operator]
        else:
            whole = lm.backbone(x)
            parts = [lm.backbone(c, state) for c in x.split(sizes, 1)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=TOLERANCE)


@pytest.mark.parametrize("system", ["cosyvoice2", "qwen", "vita", "vat", "delay-interleave"])
@few
@given(cuts=st.lists(st.integers(0, 3), max_size=8), patience=st.integers(0, 3))
def test_text_that_arrives_in_pieces_gives_the_same_speech(system: str, cuts: list[int], patience: int) -> None:
    lm = LMS[system]
    request = TokenRequest(TEXT, sampling=HOT, seed=5, least=9, schedule=((1, 2),))
    whole, _ = speak(lm, request)
    generation = Generation(lm)
    plan: TokenPlan = generation.join(
        0, TokenRequest((), final=False, sampling=HOT, seed=5, least=9, schedule=((1, 2),))
    )
    frames, rest = [], list(TEXT)
    for cut in cuts:
        plan.push_text(rest[:cut])
        rest = rest[cut:]
        for _ in range(patience):
            frames += generation.tick().values()
    plan.push_text(rest)
    plan.finish_text()
    for _ in range(1000):
        if plan.done:
            break
        frames += generation.tick().values()
    assert [f.codes.tolist() for f in frames] == [f.codes.tolist() for f in whole]


def test_streamed_text_is_spoken_before_it_is_complete() -> None:
    generation = Generation(LMS["cosyvoice2"])
    plan: TokenPlan = generation.join(0, TokenRequest((5, 9), final=False, sampling=HOT))
    frames = [f for _ in range(10) for f in generation.tick().values()]
    assert len(frames) == 3  # m steps for the first n ids, then it waits
    assert generation.tick() == {}
    assert not plan.done


def test_no_prefix_is_recomputed_when_text_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position is run once: constant cost per piece of text (CosyVoice issue 755)."""
    monkeypatch.setenv("QUAVER_RECORD", "0")  # a recorded step does not pass by the hook
    lm, ran = LMS["cosyvoice2"], []
    hook = lm.backbone.register_forward_pre_hook(lambda module, inputs: ran.append(inputs[0].shape[1]))
    _, plan = speak(lm, TokenRequest(TEXT * 4, sampling=HOT, least=60, most=70))
    hook.remove()
    assert sum(ran) == plan.used == len(TEXT) * 4 + len(plan.steps) + 2 - 1
    assert max(ran) <= lm.config.ratio[0] + 2


# -- law 3 ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", SYSTEMS)
def test_an_answer_does_not_depend_on_its_neighbours(system: str) -> None:
    lm = LMS[system]
    request = TokenRequest(TEXT, sampling=HOT, seed=5, least=8, schedule=((1, 3), (2, 2)))
    others = [
        TokenRequest(TEXT[::-1] * 3, sampling=SamplingConfig(ras_window=4, ras_threshold=0.3), seed=1),
        TokenRequest(TEXT[:2], seed=2, least=3),
    ]

    def answer(come: dict[int, tuple[int, TokenRequest]]) -> tuple[list[list[int]], list[Tensor]]:
        generation, seen = Generation(lm, 3), []
        undo = watch(lm, seen)
        plan, frames = generation.join(1, request), []
        states = []
        for tick in range(400):
            if plan.done:
                break
            for slot, (when, other) in come.items():
                if tick == when:
                    generation.join(slot, other)
                if tick == when + 9:
                    generation.leave(slot)
            drawn = len(plan.steps)
            seen.clear()
            frame = generation.tick().get(1)
            if len(plan.steps) > drawn:
                states.append(seen[0][1].clone())
            if frame is not None:
                frames.append(frame.codes.tolist())
        undo()
        return frames, states

    alone, bits = answer({})
    assert len(alone) >= 8
    for come in ({0: (0, others[0])}, {0: (3, others[1]), 2: (1, others[0])}, {2: (6, others[1])}):
        codes, states = answer(come)
        assert codes == alone
        assert all(torch.equal(a, b) for a, b in zip(states, bits, strict=True))


def test_the_second_request_starts_as_fast_as_the_first() -> None:
    """CosyVoice PR 1849: state shared between requests made the second one's first chunk late."""
    lm = LMS["cosyvoice2"]
    generation = Generation(lm, 2)

    def ticks(slot: int) -> int:
        generation.join(slot, TokenRequest(TEXT, sampling=HOT))
        return next(i for i in range(50) if slot in generation.tick())

    assert ticks(0) == ticks(1) == 0


# -- law 7 ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", SYSTEMS)
@few
@given(
    length=st.integers(1, 12),
    seed=st.integers(0, 99),
    least=st.integers(0, 12),
    more=st.integers(1, 9),
    bias=st.sampled_from([-300.0, 0.0, 300.0]),
)
def test_speech_ends_within_its_bounds_whatever_the_model_says(
    system: str, length: int, seed: int, least: int, more: int, bias: float
) -> None:
    lm = LMS[system]
    text = [(i * 7 + seed) % min(PHONE_VOCAB, 60) for i in range(length)]
    level = lm.head.levels[0]  # type: ignore[index]
    final = level[-1] if isinstance(level, torch.nn.Sequential) else level
    request = TokenRequest(text, sampling=HOT, seed=seed, least=least, most=least + more, schedule=((1, 3),))
    with torch.no_grad():
        before = final.bias.clone()  # type: ignore[union-attr]
        final.bias[lm.head.eos :] += bias  # type: ignore[union-attr,index]
        frames, plan = speak(lm, request)
        final.bias.copy_(before)  # type: ignore[union-attr]
    ratio = lm.config.interleave
    blocks = length // ratio[0] * ratio[1] if ratio else 0  # the interleave speaks its m for every n
    assert max(least, blocks) <= len(frames) <= max(least + more, blocks)
    codes = torch.stack([f.codes for f in frames], 1) if frames else torch.zeros(1, 0)
    assert int(codes.min() if codes.numel() else 0) >= 0
    assert int(codes.max() if codes.numel() else 0) < lm.config.vocab  # no stop id, no hole
    assert len(frames) == plan.end
    if bias == 300.0 and not (lm.config.layout == "cross" and lm.config.cross.relative):
        assert len(frames) == max(least, blocks, 0)


def test_every_stop_id_is_banned_before_the_least_length() -> None:
    """CosyVoice PR 1916: only one of the stop ids was masked."""
    plan = TokenPlan(TokenRequest(TEXT, least=3), LMS["cosyvoice"])
    assert plan.next() is not None
    for _ in range(3):
        ban = plan.banned()
        assert ban is not None
        assert ban[-2:].all()
        plan.commit(torch.tensor([1]), [])
    ban = plan.banned()
    assert ban is not None
    assert ban[-2:].tolist() == [False, True]  # the end is free; the fill is never drawn, it falls due


def test_silence_is_cut_short() -> None:
    lm = token_lm("cosyvoice", silent=(3, 4), silent_run=5)
    with torch.no_grad():
        lm.head.levels[0].bias[3] += 300.0  # type: ignore[union-attr,index]
    frames, _ = speak(lm, TokenRequest(TEXT, least=20, most=20, sampling=SamplingConfig(temperature=0)))
    codes = [int(f.codes[0]) for f in frames]
    runs = [codes[i : i + 6] for i in range(len(codes) - 5)]
    assert all(any(c not in (3, 4) for c in run) for run in runs)
    assert codes[:5] == [3] * 5


def test_a_long_vowel_is_not_taken_for_a_loop() -> None:
    """With a threshold of 0.1 of 10 any repeat is redrawn (CosyVoice); here the share is a setting: held codes stay."""
    lm = token_lm("cosyvoice")
    with torch.no_grad():
        lm.head.levels[0].bias[7] += 12.0  # type: ignore[union-attr,index]

    def share(threshold: float) -> float:
        config = SamplingConfig(temperature=1.0, top_k=25, ras_window=10, ras_threshold=threshold)
        frames, _ = speak(lm, TokenRequest(TEXT, least=40, most=40, sampling=config))
        return sum(int(f.codes[0]) == 7 for f in frames) / len(frames)

    assert share(0.95) > 0.85 > 0.6 > share(0.1)


def test_a_held_vowel_does_not_end_the_speech_early() -> None:
    """Research list 6.6, item 10: a run of one code is as long with repetition-aware sampling as without. The redraw
    must not take the end for another code."""
    lm = token_lm("cosyvoice")
    level = lm.head.levels[0]  # type: ignore[index]
    with torch.no_grad():  # whatever was said, mostly code 7, and sometimes the end
        level.weight.zero_()  # type: ignore[union-attr]
        level.bias.fill_(-3.0)  # type: ignore[union-attr]
        level.bias[7], level.bias[lm.head.eos] = 4.0, 1.0  # type: ignore[index]

    def lengths(window: int) -> list[int]:
        config = SamplingConfig(temperature=1.0, top_k=0, ras_window=window, ras_threshold=0.3)
        requests = (TokenRequest(TEXT, least=4, most=90, sampling=config, seed=seed) for seed in range(8))
        return [len(speak(lm, request)[0]) for request in requests]

    assert lengths(10) == lengths(0)


# -- layouts ----------------------------------------------------------------------------------------------------------
@many
@given(
    n=st.integers(1, 6), m=st.integers(1, 9), text=st.integers(0, 30), spare=st.integers(0, 20),
    voice=st.sampled_from([None, 2]), prefix=st.booleans(),
)  # fmt: skip
def test_a_sequence_holds_every_text_id_and_step_once(
    n: int, m: int, text: int, spare: int, voice: int | None, prefix: bool
) -> None:
    ratio = None if prefix else (n, m)
    frames = text // n * m + spare
    items, targets = sequence(ratio, text, frames + 1, frames, voice)
    assert [i.value for i in items if i.kind == TEXT_KIND] == list(range(text))
    assert [i.value for i in items if i.kind == SPEECH] == list(range(frames))
    assert [t for t in targets if t >= 0] == list(range(frames + 1))
    assert [i.kind for i in items].count(TASK) == 1
    # Where a step is predicted, the one before it is known, and it itself is not.
    for at, target in enumerate(targets):
        known = [i.value for i in items[: at + 1] if i.kind == SPEECH]
        if target >= 0:
            assert known == list(range(target))
    assert targets.count(FILL) == (0 if prefix else text // n)
    assert items[targets.index(frames)].kind in (SPEECH, TASK)


def test_an_utterance_with_too_little_speech_is_no_interleave() -> None:
    with pytest.raises(BadInput, match="too few"):
        sequence((5, 15), 10, 30, 29, None)


def test_cosyvoice2_layout_by_hand() -> None:
    items, targets = sequence((2, 3), 5, 8, 7, None)
    assert "".join("PSTVxo"[i.kind] for i in items) == "Sxxoooxxoooxx"[:-1].replace("xx" * 3, "") + "To"
    assert [t for t in targets if t != -1] == [0, 1, 2, FILL, 3, 4, 5, FILL, 6, 7]


def test_word_starts_are_ids_of_their_own() -> None:
    a, b = phone_text(("h", "h"), {1})
    assert b - a == PHONE_VOCAB // 2


# -- prompts ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", ["cosyvoice", "cosyvoice2", "qwen", "koel"])
def test_a_prompt_is_context_and_not_spoken(system: str) -> None:
    lm = LMS[system]
    prompt = torch.randint(0, lm.config.vocab, (lm.config.codebooks, 7), generator=torch.Generator().manual_seed(1))
    first, plan = speak(lm, TokenRequest(TEXT, prompt=prompt, sampling=HOT, least=10, most=20))
    assert 10 <= len(first) <= 20
    assert torch.equal(torch.stack(plan.history[:7], 1), prompt)
    other, _ = speak(lm, TokenRequest(TEXT, prompt=(prompt + 1) % lm.config.vocab, sampling=HOT, least=10, most=20))
    assert [f.codes.tolist() for f in other] != [f.codes.tolist() for f in first]


# -- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrong",
    [
        {"text": ()},
        {"text": (-1,)},
        {"text": (10**6,)},
        {"text": (1,) * 4000},
        {"voice": 2},
        {"least": 5, "most": 4},
        {"schedule": ()},
        {"schedule": ((0, 3),)},
        {"prompt": torch.zeros(2, 3, dtype=torch.long)},
        {"prompt": torch.full((1, 3), 27)},
    ],
)
def test_what_would_break_the_others_is_refused_at_the_door(wrong: dict[str, Any]) -> None:
    generation = Generation(LMS["cosyvoice"], 2)
    with pytest.raises(BadInput):
        generation.join(0, TokenRequest(**{"text": TEXT, **wrong}))
    assert generation.plans == [None, None]


@pytest.mark.parametrize("system", ["qwen", "vat", "cosyvoice2"])
def test_more_text_than_the_model_holds_is_refused_as_it_arrives(system: str) -> None:
    plan = TokenPlan(TokenRequest(TEXT, final=False), LMS[system])
    if system == "cosyvoice2":
        plan.push_text((1,) * 4000)  # old positions are forgotten: any length
        return
    with pytest.raises(BadInput, match="in parts"):
        plan.push_text((1,) * 100)


def test_finished_text_takes_no_more() -> None:
    plan = TokenPlan(TokenRequest(TEXT), LMS["cosyvoice2"])
    with pytest.raises(BadInput, match="finished"):
        plan.push_text((1,))


def test_schedules() -> None:
    assert parse_schedule("1 10 4 10") == ((1, 10), (4, 10))
    for wrong in ("", "1", "a b", "0 3", "1 -1", "1 2 3"):
        with pytest.raises(BadInput):
            parse_schedule(wrong)


def test_configurations_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"layout": "cross", "backbone": SYSTEMS["qwen"]["backbone"]},
        {"text": "bpe"},
        {"ratio": (0, 3)},
        {"shortest": 3.0, "longest": 2.0},
    ):
        with pytest.raises(ValueError):
            TokenLMConfig.model_validate({**SYSTEMS["cosyvoice"], **wrong})
    with pytest.raises(ConfigError):
        token_lm("qtts-delay", pattern="delay:1,0,0")
    with pytest.raises(BadInput):
        token_lm("vat", cross={"stages": 3})


# -- several tokens a forward -----------------------------------------------------------------------------------------
def test_a_schedule_saves_forwards_and_the_first_forward_speaks() -> None:
    lm, forwards = LMS["vita"], []
    hook = lm.backbone.register_forward_pre_hook(lambda module, inputs: forwards.append(inputs[0].shape[1]))
    counts = {}
    for schedule in ("1 0", "1 3", "1 3 2 1"):
        forwards.clear()
        request = TokenRequest(TEXT, sampling=HOT, least=24, most=24, schedule=parse_schedule(schedule))
        frames, _ = speak(lm, request)
        counts[schedule] = len(forwards)
        assert len(frames) == 24
    hook.remove()
    assert counts["1 0"] >= 24
    assert counts["1 3"] <= 9 + 3
    assert counts["1 3"] < counts["1 3 2 1"] < counts["1 0"]
    generation = Generation(lm)
    generation.join(0, TokenRequest(TEXT, sampling=HOT, schedule=((1, 3),)))
    assert [0 in generation.tick() for _ in range(3)] == [True] * 3  # three frames of one forward


# -- guidance ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", ["cosyvoice", "qwen", "koel", "qtts-depth", "vita"])
def test_guidance_one_is_the_unguided_path_zero_ignores_the_text_and_any_runs(system: str) -> None:
    """chatterbox: a CFG scale of 0 or 1 broke."""
    lm = LMS[system]
    guided = GuidedLM(lm)

    def codes(model: TokenLM | GuidedLM, text: tuple[int, ...], guidance: float) -> list[list[int]]:
        generation, frames = Generation(model, 2), []
        request = TokenRequest(text, sampling=HOT, seed=1, guidance=guidance, least=12, most=13)
        plan = generation.join(0, request)
        if isinstance(model, GuidedLM):  # a neighbour with another scale
            generation.join(1, TokenRequest(TEXT[:3], guidance=3.0, least=6, most=6))
        while not plan.done:
            frames += [f.codes.tolist() for s, f in generation.tick().items() if s == 0]
        return frames

    plain = codes(lm, TEXT, 1.0)
    assert codes(guided, TEXT, 1.0) == plain
    other = (8, 1, 4, 12, 3, 22, 6)
    assert codes(guided, TEXT, 0.0) == codes(guided, other, 0.0)
    assert codes(lm, other, 1.0) != plain
    assert codes(guided, TEXT, 10.0) != plain
    for wrong in (TokenRequest(TEXT, guidance=-1.0), TokenRequest(TEXT, guidance=float("nan"))):
        with pytest.raises(BadInput):
            wrong.plan(guided)
    with pytest.raises(BadInput, match="GuidedLM"):
        TokenRequest(TEXT, guidance=2.0).plan(lm)


# -- cross-attention --------------------------------------------------------------------------------------------------
def test_the_prior_is_a_distribution_that_walks_through_the_text() -> None:
    prior = beta_binomial_log_prior(9, 30).exp()
    assert torch.allclose(prior.sum(1), torch.ones(30), atol=1e-4)
    centre = (prior * torch.arange(9)).sum(1)
    assert bool((centre.diff() > 0).all())
    assert centre[0] < 1.5
    assert centre[-1] > 6.5
    assert beta_binomial_log_prior(1, 3).isfinite().all()


def test_the_place_only_moves_forward_and_decides_where_attention_looks() -> None:
    lm = LMS["vat"]
    _, plan = speak(lm, TokenRequest(TEXT, sampling=HOT, least=20, most=30))
    assert plan.place > 0
    steps = torch.stack(plan.steps, -1)[None]
    kind = torch.full((1, steps.shape[-1]), SPEECH)
    with torch.no_grad():
        ids, lengths = torch.tensor([TEXT]), torch.tensor([len(TEXT)])
        _, attention, place = lm.attend(kind, kind * 0, ids, lengths, steps)
    assert bool((place.diff(dim=1) > 0).all())
    assert torch.allclose(attention.exp().sum(-1), torch.ones(1, steps.shape[-1]), atol=1e-4)


@pytest.mark.parametrize("system", ["cosyvoice", "koel", "vat"])
def test_a_batch_equals_its_items(system: str) -> None:
    lm = LMS[system]
    steps = torch.randint(0, 12, (2, lm.config.codebooks, 6), generator=torch.Generator().manual_seed(0))
    kind, value = torch.full((2, 6), SPEECH), torch.zeros(2, 6, dtype=torch.long)
    kind[:, 0], value[:, 0] = TEXT_KIND, 2
    ids = torch.tensor([[5, 9, 3, 0, 0], [7, 30, 2, 11, 8]])
    lengths = torch.tensor([3, 5])
    with torch.no_grad():
        batch = lm.hidden(kind, value, ids, lengths, steps)
        for i, n in enumerate(lengths.tolist()):
            alone = lm.hidden(
                kind[i : i + 1], value[i : i + 1], ids[i : i + 1, :n], lengths[i : i + 1], steps[i : i + 1]
            )
            assert torch.allclose(batch[i], alone[0], atol=TOLERANCE)
