"""Text -> frames -> speech: front end, layouts, patterns, heads, sampling, the generation loop, the synthesizer."""
