"""What is collected, and where tests write."""

import os
import shutil
from pathlib import Path

import pytest
from pytest_markdown_docs.plugin import MarkdownDocstringCodeModule

FENCES = "```", "~~~"
MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30


def pytest_configure() -> None:
    """Write to memory where the system has room there: no test waits for a disk."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path):
    """Import Python files once more, for the examples in their docstrings, if there are any."""
    found = yield
    if file_path.suffix == ".py":
        text = file_path.read_text(encoding="utf-8")
        if not any(fence in text for fence in FENCES):
            found = [one for one in found if not isinstance(one, MarkdownDocstringCodeModule)]
    return found
