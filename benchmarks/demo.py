"""How soon the demo's page can be used, and how soon it is heard: `python benchmarks/demo.py http://127.0.0.1:8600`.

Start `quaver demo` first. Figures are of this browser on this machine, in seconds, one line for each visit; the first
visit fills the browser's cache. `interactive`: from the request to a filled menu of voices. `arrived`, `heard`: from
the click to the first bytes of audio, and to the first sample above 1 % of full scale at the loudspeaker.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--visits", type=int, default=3)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        switches = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = driver.chromium.launch(executable_path=found, args=switches)
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        for visit in range(arguments.visits):
            page = context.new_page()
            page.set_default_timeout(120_000)
            started = time.monotonic()
            page.goto(f"{arguments.url}/demo/", wait_until="commit")
            page.wait_for_function("() => document.querySelector('#speak-voice input')?.value && window.quaverSpeak")
            interactive = time.monotonic() - started
            page.click("#speak-button")
            page.wait_for_function("() => window.quaverSpeech?.done")
            figures = page.evaluate("() => window.quaverSpeech.figures")
            row = {name: round(figures[name] / 1000, 3) for name in ("arrived", "heard")}
            row |= {"visit": visit + 1, "interactive": round(interactive, 2), "factor": round(figures["factor"], 2)}
            sys.stdout.write(json.dumps(row | {"load": os.getloadavg()[0]}) + "\n")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
