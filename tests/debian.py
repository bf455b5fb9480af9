"""Programs that Debian's packages bring, for tests that drive them."""

import os
import shutil

import pytest


def program(name: str, package: str) -> str:
    """Path of a program; without it the test is skipped, or fails where all are promised.

    `RETNET_TEST_DEBIAN=1` promises them: `.ci/run` sets it after it has installed the packages.
    """
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    if path is not None:
        return path
    missing = f"{name} is not installed; apt-get install {package}"
    if os.environ.get("RETNET_TEST_DEBIAN") == "1":
        pytest.fail(missing)
    pytest.skip(missing)
