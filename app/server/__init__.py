"""The network side of quaver: HTTP and WebSocket transports over one engine, and what keeps them safe to run.

Everything here needs the `serve` extra. asyncio lives only here; torch is met only through the engine.
"""
