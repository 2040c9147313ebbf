"""The text-in, audio-out socket with nothing but `websockets`, in the manner of websocat:

echo "Text as it is written." | python examples/serving/websocket_client.py | aplay -q -t raw -f S16_LE -r 24000 -c 1
"""

from __future__ import annotations

import json
import os
import sys
import threading

from websockets.sync.client import ClientConnection, connect


def send(socket: ClientConnection) -> None:
    for line in sys.stdin:
        socket.send(json.dumps({"type": "input.text", "text": line}))
    socket.send('{"type": "input.done"}')


def main() -> None:
    url = os.environ.get("QUAVER_URL", "http://127.0.0.1:8600").replace("http", "ws", 1)
    key = os.environ.get("QUAVER_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else None
    with connect(f"{url}/v1/audio/speech/stream", additional_headers=headers, compression=None) as socket:
        socket.send(json.dumps({"type": "session.config", "response_format": "pcm"}))
        threading.Thread(target=send, args=(socket,), daemon=True).start()
        for message in socket:
            if isinstance(message, bytes):
                sys.stdout.buffer.write(message)
                sys.stdout.buffer.flush()
                continue
            sys.stderr.write(message + "\n")
            if json.loads(message)["type"] in ("session.done", "error"):
                return


if __name__ == "__main__":
    main()
