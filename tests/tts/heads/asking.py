"""Asks a model of continuous tokens for one answer, with others beside it."""

from __future__ import annotations

from quaver.tts.generate import Frame, Generation, Request


def answer(generation: Generation, slot: int, wanted: Request, neighbours: dict[int, Request]) -> list[Frame]:
    """The frames of a request in a slot while its neighbours speak too."""
    for place, other in neighbours.items():
        generation.join(place, other)
    plan, frames = generation.join(slot, wanted), []
    while not plan.done:
        frame = generation.tick().get(slot)
        if frame is not None:
            frames.append(frame)
    return frames
