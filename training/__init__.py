"""Corpora, alignment, one trainer, losses; later post-training. Nothing under app imports this room at import time."""
