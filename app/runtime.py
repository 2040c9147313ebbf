"""What a command sets for its own process before it uses torch. Never called at import."""

from __future__ import annotations


def use_threads(count: int) -> None:
    """One thread is the default everywhere: at these sizes a second one costs more than it gives."""
    import torch

    torch.set_num_threads(count)
