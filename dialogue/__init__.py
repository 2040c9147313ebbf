"""Frames <-> frames. Empty for now: the full-duplex model (Moshi's streams), its session, and turn-taking metrics."""
