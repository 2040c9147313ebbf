"""Frames <-> frames: the full-duplex model (Moshi's streams), its session on slots, and published weights."""
