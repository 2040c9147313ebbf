"""Speculation along time: greedy answers are those of plain decoding, samples follow the target's law, and a cache that
has seen drafts is the cache that has not."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from quaver.errors import BadInput
from quaver.tts.drafters import Drafter, DraftLength, HeadDrafter, LMDrafter, LookupDrafter, first_layers, laws_at
from quaver.tts.generate import Generation
from quaver.tts.guidance import GuidedLM
from quaver.tts.sampling import SamplingConfig
from quaver.tts.speculative import Budgeted, Channel, CoarseGrained, Exact, Mixing, Rule, Tolerance
from quaver.tts.speculative_plan import Speculation, SpeculativeGeneration, measured_length
from quaver.tts.token_lm import TokenLM
from quaver.tts.token_plan import TokenPlan, TokenRequest

from ..laws import few, randomised
from .tokens import BACKBONE, TEXT, speak, taught, token_lm

GREEDY = SamplingConfig(temperature=0)
SAMPLED = SamplingConfig(temperature=0.9, top_k=12, top_p=0.95, ras_window=6, ras_threshold=0.3)


def drafter(kind: str, lm: TokenLM) -> Drafter:
    if kind == "head":
        return HeadDrafter()
    if kind == "lookup":
        return LookupDrafter(3, 1)
    small = first_layers(lm, 1).eval()
    # Or it would agree too often to be rejected. Not the table: that is the target's.
    randomised(small.head.levels, 5, 0.1)  # type: ignore[type-var]
    return LMDrafter(small)


def finish(generation: Generation, slot: int, limit: int = 2000) -> list[int]:
    codes: list[int] = []
    for _ in range(limit):
        if generation.plans[slot].done:
            return codes
        codes += [int(frame.codes[0]) for s, frame in generation.tick().items() if s == slot]
        assert not generation.failures, generation.failures
    raise AssertionError("the plan hangs")


@pytest.mark.parametrize("length", [0, 1, 5])
@pytest.mark.parametrize(
    ("system", "kind"),
    [
        ("cosyvoice", "lm"),
        ("cosyvoice2", "lm"),
        ("qwen", "lm"),
        ("vita", "head"),
        ("vita", "lm"),
        ("cosyvoice", "lookup"),
    ],
)
def test_greedy_speculation_is_greedy_decoding(system: str, kind: str, length: int) -> None:
    lm = token_lm(system)
    request = TokenRequest(TEXT, sampling=GREEDY)
    plain, _ = speak(lm, request)
    generation = SpeculativeGeneration(lm, Speculation(drafter(kind, lm), Exact(), length))
    generation.join(0, request)
    assert finish(generation, 0) == [int(frame.codes[0]) for frame in plain]
    if length == 0:
        assert generation.figures.drafted == 0
    elif kind != "lookup":
        assert (
            generation.figures.judged > generation.figures.kept
        )  # something was rejected: the test has met a rollback


class Watched(SpeculativeGeneration):
    """Keeps the hidden states from which the committed tokens were judged."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: list[Tensor] = []

    def _take(self, group: Any, drafted: int, proposal: Any, count: Any, token: Any, cost: Any, hidden: Tensor) -> None:
        for slot in group:
            self.seen.append(hidden[slot, : count[slot] + 1].clone())
        super()._take(group, drafted, proposal, count, token, cost, hidden)


@few
@given(seed=st.integers(0, 1000), length=st.integers(1, 5), system=st.sampled_from(["cosyvoice2", "qwen", "cosyvoice"]))
def test_a_cache_that_saw_drafts_is_one_that_did_not(seed: int, length: int, system: str) -> None:
    lm = token_lm(system)
    generation = Watched(lm, Speculation(drafter("lm", lm), Exact(), length))
    plan = generation.join(0, TokenRequest(TEXT, sampling=SAMPLED, seed=seed))
    finish(generation, 0)
    hidden, _ = taught(lm, plan)
    seen = torch.cat(generation.seen)[: len(hidden)]
    assert torch.allclose(seen, hidden, atol=1e-4)
    assert generation.figures.judged > generation.figures.kept


def test_a_cache_that_saw_drafts_survives_the_wrap_of_its_ring() -> None:
    """A window of 14 positions with 5 to spare, and an answer of three times that."""
    backbone = {**BACKBONE, "window": 14, "slack": 5}
    lm = token_lm("cosyvoice2", backbone=backbone)
    generation = Watched(lm, Speculation(drafter("lm", lm), Exact(), 5))
    text = TEXT * 3
    plan = generation.join(0, TokenRequest(text, sampling=SAMPLED, least=45, most=60))
    finish(generation, 0)
    hidden, _ = taught(lm, plan)
    assert len(hidden) > 45
    assert torch.allclose(torch.cat(generation.seen)[: len(hidden)], hidden, atol=1e-4)
    assert generation.figures.judged > generation.figures.kept


@pytest.mark.parametrize(("system", "kind"), [("cosyvoice2", "lm"), ("vita", "head"), ("cosyvoice", "lookup")])
def test_a_row_does_not_depend_on_its_neighbours(system: str, kind: str) -> None:
    lm = token_lm(system)
    speculation = Speculation(drafter(kind, lm), Exact(), DraftLength(0.1, (1.0, 1.1, 1.2, 1.3, 1.4)))
    request = TokenRequest(TEXT, sampling=SAMPLED, seed=7)
    alone = SpeculativeGeneration(lm, speculation, slots=3)
    alone.join(1, request)
    wanted = finish(alone, 1)
    crowd = SpeculativeGeneration(lm, speculation, slots=3)
    crowd.join(0, TokenRequest(TEXT[:3], sampling=GREEDY, seed=1))
    crowd.tick()
    crowd.join(1, request)
    got = [int(frame.codes[0]) for s, frame in crowd.tick().items() if s == 1]
    crowd.join(2, TokenRequest(TEXT * 2, sampling=SAMPLED.model_copy(update={"temperature": 0.5}), seed=2))
    assert got + finish(crowd, 1) == wanted


def test_a_failed_tick_leaves_everything_as_it_was() -> None:
    lm = token_lm("cosyvoice2")
    request = TokenRequest(TEXT, sampling=SAMPLED, seed=3)

    def generation() -> SpeculativeGeneration:
        out = SpeculativeGeneration(lm, Speculation(drafter("lm", lm), Exact(), 3))
        out.join(0, request)
        return out

    wanted, shaky, codes = finish(generation(), 0), generation(), []
    run, count = lm.run, 0

    def failing(*arguments: Any, **settings: Any) -> Tensor:
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise RuntimeError("out of luck")
        return run(*arguments, **settings)

    lm.run = failing  # type: ignore[method-assign]
    for _ in range(500):
        if shaky.plans[0].done:
            break
        try:
            codes += [int(frame.codes[0]) for frame in shaky.tick().values()]
        except RuntimeError:
            continue
    assert codes == wanted
    assert count > 10


def test_a_paced_stream_that_is_ahead_takes_plain_steps() -> None:
    lm = token_lm("cosyvoice")
    generation = SpeculativeGeneration(lm, Speculation(drafter("lm", lm), Exact(), 4))
    generation.join(0, TokenRequest(TEXT, sampling=GREEDY))
    generation.ahead.add(0)
    for _ in range(8):
        generation.tick()
    assert generation.figures.drafted == 0
    generation.ahead.clear()
    finish(generation, 0)
    assert generation.figures.drafted > 0


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_guided_speculation_is_guided_decoding(guidance: float) -> None:
    lm = token_lm("cosyvoice")
    request = TokenRequest(TEXT, sampling=GREEDY, guidance=guidance)
    plain = Generation(GuidedLM(lm))
    plain.join(0, request)
    generation = SpeculativeGeneration(GuidedLM(lm), Speculation(drafter("lm", lm), Exact(), 3))
    generation.join(0, request)
    assert finish(generation, 0) == finish(plain, 0)


# -- the law of what comes out ----------------------------------------------------------------------------------------
FRAMES = 3


def tiny() -> TokenLM:
    return randomised(token_lm("cosyvoice", vocab=3), 2, 0.5)


@torch.no_grad()
def exact_law(lm: TokenLM, request: TokenRequest) -> dict[tuple[int, ...], float]:
    """The target's law of whole answers of three frames, by plain steps."""
    laws: dict[tuple[int, ...], float] = {}
    for codes in product(range(3), repeat=FRAMES):
        plan = request.plan(lm)
        plan.steps = [torch.tensor([c]) for c in codes] + [torch.tensor([plan.eos])]
        hidden, _ = taught(lm, plan)
        value = 1.0
        for step, code in enumerate(codes):
            plan.steps = [torch.tensor([c]) for c in codes[:step]]
            prefix = _prefix(plan)
            law = laws_at(lm.head.logits(hidden[step : step + 1], torch.zeros(1, 1).long())[0][:, None], {0: prefix})
            value *= float(law[0, 0, code])
        laws[codes] = value
    return laws


def _prefix(plan: TokenPlan) -> Any:
    from quaver.tts.drafters import Prefix

    return Prefix(plan)


def pvalue(rule: Rule, count: int = 600, slots: int = 60) -> float:
    lm, sampling = tiny(), SamplingConfig(temperature=1.2, top_k=0, ras_window=3, ras_threshold=0.5)
    request = TokenRequest(TEXT[:3], sampling=sampling, least=FRAMES, most=FRAMES)
    law = exact_law(lm, request)
    seen = dict.fromkeys(law, 0)
    speculation = Speculation(drafter("lm", lm), rule, 2)
    for begin in range(0, count, slots):
        generation = SpeculativeGeneration(lm, speculation, slots)
        plans = [
            generation.join(s, TokenRequest(TEXT[:3], sampling=sampling, least=FRAMES, most=FRAMES, seed=begin + s))
            for s in range(slots)
        ]
        while not all(plan.done for plan in plans):
            generation.tick()
        for plan in plans:
            seen[tuple(int(step[0]) for step in plan.steps[:FRAMES])] += 1
    wanted = torch.tensor(list(law.values()), dtype=torch.float64)
    assert abs(float(wanted.sum()) - 1) < 1e-4
    found = torch.tensor(list(seen.values()), dtype=torch.float64)
    assert not found[wanted == 0].any()  # the repetition rule forbids some answers
    rare = wanted * count < 5
    found = torch.cat([found[~rare], found[rare].sum()[None]])
    wanted = torch.cat([wanted[~rare], wanted[rare].sum()[None]]) * count
    return float(chisquare(found.numpy(), (wanted * found.sum() / wanted.sum()).numpy()).pvalue)


def test_samples_follow_the_targets_law_with_repetition_rules_and_all() -> None:
    assert pvalue(Exact()) > 1e-4


def test_a_constant_bonus_does_not_follow_it() -> None:
    assert pvalue(Tolerance(0.8)) < 1e-4


# -- settings ---------------------------------------------------------------------------------------------------------
def test_the_budget_of_an_utterance_is_kept() -> None:
    lm = token_lm("cosyvoice")
    channel = Channel.of_groups([[*range(27)], [27], [28]], 29)
    rule = Budgeted(CoarseGrained(channel), 0.2, 0.5)
    generation = SpeculativeGeneration(lm, Speculation(drafter("lm", lm), rule, 3))
    plan = generation.join(0, TokenRequest(TEXT, sampling=SAMPLED))
    finish(generation, 0)
    assert 0.1 < vars(plan)["draft_spent"] <= 0.5 + 1e-5
    loose = SpeculativeGeneration(lm, Speculation(drafter("lm", lm), CoarseGrained(channel), 3))
    loose.join(0, TokenRequest(TEXT, sampling=SAMPLED))
    finish(loose, 0)
    assert loose.figures.acceptance > generation.figures.acceptance


def test_the_draft_length_follows_acceptance_and_costs() -> None:
    cheap, dear = DraftLength(0.05, (1.0,) * 9), DraftLength(0.05, tuple(1.0 + 0.9 * n for n in range(9)))
    assert [cheap.choose(a) for a in (0.0, 0.3, 0.6, 0.95)] == sorted(cheap.choose(a) for a in (0.0, 0.3, 0.6, 0.95))
    assert cheap.choose(0.0) == 0
    assert cheap.choose(0.95) == 8
    assert dear.choose(0.6) == 0  # where verifying n costs n, nothing is gained
    share = 0.7
    for _ in range(60):
        share = cheap.updated(share, 0, 4)
    assert share < 0.1
    with pytest.raises(BadInput):
        DraftLength(-1, (1.0,))


@pytest.mark.parametrize(("system", "kind"), [("cosyvoice", "lm"), ("vita", "head"), ("cosyvoice2", "lookup")])
def test_the_costs_behind_the_draft_length_are_measured(system: str, kind: str) -> None:
    lm, its = token_lm(system), drafter(kind, token_lm(system))
    if kind == "lm":
        its = drafter(kind, lm)
    SpeculativeGeneration(lm, Speculation(its))  # attaches it
    length = measured_length(lm, its, most=3, repeats=2)
    assert length.verify[0] == 1.0
    assert len(length.verify) == (min(3, its.most) if its.most is not None else 3) + 1
    assert (length.draft > 0.01) == (kind != "lookup")
    generation = SpeculativeGeneration(lm, Speculation(its, Exact(), length))
    generation.join(0, TokenRequest(TEXT, sampling=GREEDY))
    plain = Generation(lm)
    plain.join(0, TokenRequest(TEXT, sampling=GREEDY))
    assert finish(generation, 0) == finish(plain, 0)


def test_what_does_not_fit_is_refused() -> None:
    lm, other = token_lm("cosyvoice"), token_lm("cosyvoice2")
    with pytest.raises(BadInput, match="along depth"):
        SpeculativeGeneration(token_lm("qtts-depth"), Speculation(LookupDrafter()))
    with pytest.raises(BadInput, match="one codebook"):
        SpeculativeGeneration(token_lm("koel"), Speculation(LookupDrafter()))
    with pytest.raises(BadInput, match="multi-token head"):
        SpeculativeGeneration(lm, Speculation(HeadDrafter()))
    with pytest.raises(BadInput, match="layout"):
        SpeculativeGeneration(lm, Speculation(LMDrafter(other)))
    with pytest.raises(BadInput, match="groups"):
        SpeculativeGeneration(lm, Speculation(LookupDrafter(), CoarseGrained(Channel.identity(5))))
    with pytest.raises(BadInput, match="0 to 64"):
        Speculation(LookupDrafter(), Mixing(0.1), 99)
    with pytest.raises(BadInput, match="layers"):
        first_layers(lm, 2)
