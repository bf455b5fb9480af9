"""Take the picture of the page that README and docs show.

    PYTHONPATH=tests python tests/serve/page/picture.py runs/demo docs/images/page.png

The model talks in a process of its own, as `retnet serve` runs it; sessions go to a folder that
is deleted afterwards.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from browser import chromium, say

TALKS = (
    ("import os\nimport sys",),
    ('def parse(text):\n    """Parse a line.',),
    (
        "class Reader(object):",
        'def read(self, size):\n    """Read from the file.',
        'def close(self):\n    """Close the file.',
        'def __iter__(self):\n    """Go through the lines.',
    ),
)
"""Beginnings of what a model of Python's own source may go on with; the last talk is shown."""

SAID = {"temperature": "0.7", "repetition_penalty": "1.15", "max_tokens": "110", "seed": "1"}


def main(checkpoint: str, picture: str) -> None:
    """See the module."""
    with TemporaryDirectory() as sessions:
        command = [sys.executable, "-m", "retnet", "serve", checkpoint, "--port", "0"]
        with subprocess.Popen(
            [*command, "--data-dir", sessions], stderr=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stderr is not None
                line = next(line for line in server.stderr if '"listening"' in line)
                take(f"http://127.0.0.1:{json.loads(line)['port']}/", Path(picture))
            finally:
                server.terminate()


def take(url: str, picture: Path) -> None:
    """Talk, and save what is seen."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
        page.goto(url)
        page.wait_for_selector("#send:enabled")
        for name, value in SAID.items():
            page.fill(f"#sampling-{name}", value)
        page.check("#fixed")
        for talk in TALKS:
            page.click("#new")
            page.wait_for_selector("#welcome:visible")
            for text in talk:
                say(page, text)
        page.evaluate("document.activeElement.blur()")
        page.evaluate("document.querySelector('#panel').scrollTop = 0")
        page.mouse.move(600, 400)
        page.screenshot(path=picture, animations="disabled")


if __name__ == "__main__":
    main(*sys.argv[1:])
