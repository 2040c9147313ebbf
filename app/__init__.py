"""Where quaver meets files, terminals and (later) sockets: audio files, the command line, the server, the engine.

The top floor, and the only one in which there may be concurrency.
"""
