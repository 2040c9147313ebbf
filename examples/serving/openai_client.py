"""OpenAI's own client against `quaver serve`: python examples/serving/openai_client.py "Hello world." hello.mp3"""

from __future__ import annotations

import os
import sys

import openai


def main(text: str, path: str) -> None:
    url = os.environ.get("QUAVER_URL", "http://127.0.0.1:8600")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("QUAVER_API_KEY", "unused"))
    with client.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input=text) as answer:
        answer.stream_to_file(path)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0] if words else "Hello world.", words[1] if len(words) > 1 else "hello.mp3")
