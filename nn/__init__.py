"""Streaming building blocks: convolutions, transformer, STFT, and the caller-owned state they share.

The bottom floor: it knows nothing of audio or text and imports no other room.
"""
