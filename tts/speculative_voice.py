"""Speculation for a loaded voice: which axis its model speculates on, with whom and by which rule.

One codebook: along time (`tts/speculative_plan.py`). Frames of several codebooks from a depth or chain head: along
depth (`tts/speculative_depth.py`). Everything else is refused with a word on what can.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from ..codecs.loading import load_weights, model_folder, read_config
from ..errors import BadInput, ConfigError
from .drafters import load_drafter
from .groups import Groups, build_groups, code_embeddings, load_groups, weights_hash
from .heads import CategoricalHead
from .speculative import Budgeted, CoarseGrained, Exact, Rule, Tolerance
from .speculative_depth import DepthDrafter, HeadDrafter, ResidualDrafter, SpeculativeHead, depth_rule
from .speculative_plan import Figures, Speculation, SpeculativeGeneration, measured_length
from .token_heads import DepthHead, MultiTokenHead
from .token_lm import TokenLM
from .token_synthesizer import TokenSynthesizer

__all__ = ["MODES", "SpeculationSettings", "load_depth_drafter", "offer_speculation", "speculate"]

Mode = Literal["exact", "pcg", "budgeted", "tolerance"]
MODES: tuple[str, ...] = get_args(Mode)


class SpeculationSettings(BaseModel):
    """Attributes:
    mode: the rule: `exact`, `pcg` (coarse-grained), `budgeted` (PCG within `delta`), `tolerance` (SSD, a baseline).
    draft: `head` (the model's own: its multi-token head along time, all levels of its depth or chain head at once along
        depth), `lookup`, or a drafter's folder; None: the multi-token head if there is one, else the folder `draft`
        beside the weights, else (along depth) `head`.
    length: tokens to draft at a time (along time); `auto`: chosen for each request from costs measured at load and its
        own acceptance, so that a seed gives other speech of the same law on another machine.
    delta: total variation that a step may spend (`budgeted`). total: that an utterance may spend.
    bonus: of `tolerance`. groups: a file of `quaver groups build`; None: `groups.safetensors` beside the weights, or
        those of `build_groups` by default, made at load, where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "exact"
    draft: str | None = None
    length: int | Literal["auto"] = 3
    delta: float = 0.1
    total: float = float("inf")
    bonus: float = 0.3
    groups: Path | None = None


def speculate(synthesizer: Any, name: str, settings: SpeculationSettings) -> None:
    """Lets a `Synthesizer` or `TokenSynthesizer` speculate from its next answer on.

    Args:
        name: bundled name or folder that it was loaded from: drafters and groups belong to those weights.

    Raises:
        BadInput: a model that cannot, or settings out of range. MissingFile, ConfigError, CorruptFile: of the drafter
            or the groups.
    """
    lm: Any = synthesizer.lm
    folder = model_folder(name)
    along_time = isinstance(lm, TokenLM) and lm.config.codebooks == 1
    if along_time:
        rule = _rule(settings, folder, lm.head)
        drafter = load_drafter(_draft(settings, folder, lm.head), lm, weights_hash(folder))
        SpeculativeGeneration(
            lm, Speculation(drafter, rule)
        )  # what does not fit is refused now, not in the first answer
        length = measured_length(lm, drafter) if settings.length == "auto" else settings.length
        speculation = Speculation(drafter, rule, length)
        synthesizer.loop = partial(SpeculativeGeneration, speculation=speculation)
        return
    if not isinstance(lm.head, DepthHead | CategoricalHead):
        raise BadInput(
            f"{name} draws its codebooks side by side, so there is nothing to speculate on; it takes a model of one "
            "codebook (recipes/cosyvoice-lm.yaml, recipes/vita.yaml) or a depth or chain head (recipes/qtts-depth.yaml)"
        )
    if settings.mode == "tolerance":
        raise BadInput("along depth the rules are exact, pcg and budgeted; tolerance needs a model of one codebook")
    groups = None if settings.mode == "exact" else _groups(settings, folder, lm.head)
    rule = depth_rule(settings.mode, groups, settings.delta)
    drafter = load_depth_drafter(_draft(settings, folder, lm.head), lm.head, weights_hash(folder))
    lm.head = SpeculativeHead(lm.head, drafter, rule)  # type: ignore[assignment]


def offer_speculation(synthesizer: TokenSynthesizer, name: str) -> Figures | None:
    """Lets answers of a loaded token model ask for speculation (`stream(speculate=True)`), if it has a multi-token head
    or a drafter beside its weights. By the exact rule: an answer's law does not change.

    Returns:
        What such answers have done so far, all together; None for a model without a drafter.

    Raises:
        ConfigError, CorruptFile: a drafter that is damaged or of other weights.
    """
    lm, folder = synthesizer.lm, model_folder(name)
    if lm.config.codebooks != 1 or lm.config.layout == "cross":
        return None
    if not isinstance(lm.head, MultiTokenHead) and not (folder / "draft" / "config.json").exists():
        return None
    drafter = load_drafter(_draft(SpeculationSettings(), folder, lm.head), lm, weights_hash(folder))
    speculation, figures = Speculation(drafter), Figures()
    SpeculativeGeneration(lm, speculation)
    synthesizer.faster = partial(SpeculativeGeneration, speculation=speculation, figures=figures)
    return figures


def load_depth_drafter(name: str, head: DepthHead | CategoricalHead, sha256: str) -> DepthDrafter:
    """A drafter along depth: the head itself (`head`), or a run of the task `draft`.

    Raises:
        BadInput: `lookup`. MissingFile, CorruptFile: no such drafter, or damaged. ConfigError: of another kind, or for
            other weights.
    """
    if name == "head":
        return HeadDrafter(head)
    if name == "lookup":
        raise BadInput(
            "lookup drafts along time; along depth it is head, or a drafter's folder (recipes/draft-depth.yaml)"
        )
    folder = model_folder(name)
    config = read_config(folder)
    if config.get("kind") != "depth_draft":
        raise ConfigError(f"{folder} is no drafter along depth; train one with recipes/draft-depth.yaml")
    if config.get("target") != sha256:
        raise ConfigError(
            f"{folder} was trained for other weights than this model's; train it again with recipes/draft-depth.yaml "
            "and options.target set to the model"
        )
    first = head.size(0) if isinstance(head, DepthHead) else head.vocab
    drafter = ResidualDrafter(head.norm.weight.numel(), head.codebooks, head.vocab, first, int(config["hidden"]))
    load_weights(drafter, folder)
    return drafter.eval()


def _draft(settings: SpeculationSettings, folder: Path, head: Any) -> str:
    if settings.draft is not None:
        return settings.draft
    own = folder / "draft"
    if isinstance(head, MultiTokenHead):
        return "head"
    if (own / "config.json").exists():
        return str(own)
    if head.codebooks > 1:
        return "head"
    raise BadInput(
        f"there is no drafter in {own}; train one with recipes/draft-lm.yaml, or name one with --draft (lookup needs "
        "no training)"
    )


def _groups(settings: SpeculationSettings, folder: Path, head: Any) -> Groups:
    path = settings.groups or folder / "groups.safetensors"
    if settings.groups is None and not path.exists():  # half a second, and no file to go stale
        return build_groups(code_embeddings(head), control=int(head.stops))
    return load_groups(path, weights_hash(folder))


def _rule(settings: SpeculationSettings, folder: Path, head: Any) -> Rule:
    if settings.mode == "exact":
        return Exact()
    if settings.mode == "tolerance":
        if not 0 <= settings.bonus <= 1:
            raise BadInput(f"a tolerance lies between 0 and 1, not {settings.bonus}")
        return Tolerance(settings.bonus)
    coarse = CoarseGrained(_groups(settings, folder, head).channels[0])
    return coarse if settings.mode == "pcg" else Budgeted(coarse, settings.delta, settings.total)
