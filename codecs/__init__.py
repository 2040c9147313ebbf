"""Audio <-> frames: the native codec, quantizers, decoder heads, the .qvr container, adapters to published codecs."""
