"""Full-duplex steps: Moshi's network in ours and in package `moshi`, and the bundled model over many slots."""

from __future__ import annotations

from typing import Any

import torch

CARD = 2048


def moshi_sizes(dim: int, layers: int) -> dict[str, Any]:
    from quaver.benchmarks.moshi_step import configuration

    return configuration(dim, layers)


def ours(dim: int, layers: int, steps: int, slots: int = 1, half: bool = False) -> tuple[Any, dict[str, Any]]:
    """The step of a live session without its codec, recorded as the server runs it, with `moshi`'s own weights."""
    from quaver.benchmarks import moshi_step
    from quaver.nn.packed import pack_linears

    config = moshi_sizes(dim, layers)
    with torch.inference_mode():
        reference = moshi_step.theirs(config)
    parameters = sum(p.numel() for p in reference.parameters())
    model = moshi_step.ours(reference, config)
    del reference
    if half:
        pack_linears(model)
    torch.set_num_threads(1)
    step = moshi_step.our_step(model, slots)
    return _steps(step, slots, steps), {"parameters": parameters, **_cost(model, 2 if half else 4, slots)}


def moshi(dim: int, layers: int, steps: int, slots: int = 1) -> tuple[Any, dict[str, Any]]:
    """`LMGen.step` of package `moshi`; on a CPU it has no graphs."""
    from quaver.benchmarks import moshi_step

    with torch.inference_mode():
        model = moshi_step.theirs(moshi_sizes(dim, layers))
    torch.set_num_threads(1)
    step = moshi_step.their_step(model, slots)
    return _steps(step, slots, steps), {"parameters": sum(p.numel() for p in model.parameters())}


def _steps(step: Any, slots: int, steps: int) -> Any:
    dice = torch.Generator().manual_seed(0)

    def call() -> dict[str, Any]:
        for _ in range(steps):
            step(torch.randint(CARD, (slots, 8), generator=dice))
        return {"units": steps}

    return call


def _cost(model: Any, weight_bytes: float, slots: int) -> dict[str, float]:
    """Backbone, text head, and the depth transformer with a set of weights for every level."""
    from quaver.benchmarks import roofline

    b, d, c = model.config.backbone, model.config.depth, model.config
    seen = b.window + b.slack
    cost = roofline.transformer(b.width, b.layers, b.hidden, seen, 1, slots, weight_bytes)
    cost += roofline.linear(b.width, c.text_vocab, slots, weight_bytes)
    level = roofline.transformer(d.width, d.layers, d.hidden, 0, 1, slots, weight_bytes)
    level += roofline.linear(b.width, d.width, slots, weight_bytes) + roofline.linear(
        d.width, c.vocab, slots, weight_bytes
    )
    cost += level * c.own
    return {"read": cost.read, "flops": cost.flops}


def bundled(slots: int, ticks: int = 10) -> tuple[Any, dict[str, Any]]:
    """`quaver-duplex`: frames of `slots` conversations, from the users' audio to the model's, recorded."""
    import numpy as np

    from quaver.dialogue.loading import load_duplex

    batch = load_duplex("quaver-duplex").batch(slots, recorded=True)
    for slot in range(slots):
        batch.join(slot)
    dice = np.random.default_rng(0)
    frame = 1000 * batch.frame_size / batch.sample_rate

    def call() -> dict[str, Any]:
        for _ in range(ticks):
            noise = (0.1 * dice.standard_normal((slots, batch.frame_size))).astype(np.float32)
            batch.step(dict(enumerate(noise)))
        return {"units": ticks * slots}

    return call, {"frame": frame, "slots": slots}
