"""The web demo: a Gradio page in the application, and with the engine, of `quaver serve` (docs/demo.md)."""
