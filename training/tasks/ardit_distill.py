"""Distils ARDiT to one step, by distribution matching (ARDiT's IKL; Luo et al. 2023, Yin et al. 2024).

The student draws a block in one evaluation, from noise at time 0. Two forces pull at what it draws: the difference
between the clean latents that the teacher sees in it (noised again) and those that a *fake* model sees, which is
trained all the while on what the student draws; and, less and less, where the teacher's own Euler steps end from the
same noise. All three models start from the teacher.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ...errors import ConfigError
from ...tts.ardit import Ardit
from ...tts.flow import cosine_times
from ..recipe import Recipe
from .ardit import ArditTask, Given
from .ardit import Options as ArditOptions

__all__ = ["ArditDistillTask"]


class Options(ArditOptions):
    """Attributes:
    euler: steps of the teacher. regression: weight of its end points, at the first and at the last step. fade: steps in
        which the one goes over into the other. fake: weight of the fake model's own loss.
    """

    euler: int = Field(default=8, ge=1)
    regression: tuple[float, float] = (1.0, 0.2)
    fade: int = Field(default=200, ge=1)
    fake: float = 1.0


class ArditDistillTask(ArditTask):
    options: Options

    @staticmethod
    def read(options: dict[str, Any]) -> Options:
        return Options.model_validate(options)

    def _build(self, recipe: Recipe, rates: dict[str, float]) -> None:
        if recipe.init is None:
            raise ConfigError("a student starts from its teacher: give the run of it as init")
        super()._build(recipe, rates)

    def _network(self) -> nn.Module:
        return _Network(self.model, self.options)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "steps": 1}


class _Network(nn.Module):
    """Student, fake model, and the teacher, which is kept out of `parameters()`."""

    def __init__(self, model: Ardit, options: Options) -> None:
        super().__init__()
        self.model, self.fake, self.options = model, deepcopy(model), options
        self._teacher = [deepcopy(model).eval().requires_grad_(False)]
        for network in (self.model, self.fake):  # lengths are the teacher's, and what they are read from
            for part in (network.lengths, network.pace, network.phones):
                part.requires_grad_(False)

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        options, teacher = self.options, self._teacher[0].to(batch["latents"].device)
        given = Given.of(batch, self.model, options)
        encoded, fake_encoded = given.encoded(self.model), given.encoded(self.fake)
        noise = torch.randn_like(given.goal)
        made = given.clean(self.model, encoded, noise, torch.zeros_like(noise[..., 0]))
        with torch.no_grad():
            taught = given.encoded(teacher)
            ends = self._euler(given, teacher, taught, noise)
            pull = self._pull(given, (teacher, taught), (self.fake, fake_encoded), made.detach())
        matching = given.mean(0.5 * (made - (made + pull).detach()).square().mean(-1))
        regression = given.mean((made - ends).square().mean(-1))
        fake = given.flow_loss(self.fake, fake_encoded, made.detach(), options.still)
        begin, end = options.regression
        weight = begin + (end - begin) * min(1.0, step / options.fade)
        total = matching + weight * regression + options.fake * fake
        return {"loss": total, "matching": matching, "regression": regression, "fake": fake}

    def _euler(self, given: Given, teacher: Ardit, encoded: Tensor, x: Tensor) -> Tensor:
        """Where the teacher gets from noise `x`."""
        for now, after in pairwise(cosine_times(self.options.euler)):
            clean = given.clean(teacher, encoded, x, torch.full_like(x[..., 0], now))
            x = x + (after - now) / (1 - now) * (clean - x)
        return x

    def _pull(self, given: Given, teacher: tuple[Ardit, Tensor], fake: tuple[Ardit, Tensor], made: Tensor) -> Tensor:
        """Where the teacher would rather have it, against what the fake model knows the student by. In clean latents,
        not in velocities: there the difference is divided by 1 - time, and late times rule. Not divided by the
        student's error either, as Yin et al. do: near the goal that grew without bound."""
        time = given.times(0.0) * 0.95
        noisy = torch.randn_like(made).lerp(made, time[..., None])
        return given.clean(*teacher, noisy, time) - given.clean(*fake, noisy, time)
