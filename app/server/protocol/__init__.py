"""The wire as data: pydantic models of every message, byte formats of every frame, and nothing that opens a socket.

tests/vectors holds golden messages of each surface; docs/protocol.md is generated from them and from these models.
"""
