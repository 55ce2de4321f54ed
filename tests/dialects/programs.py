"""The programs that the vendors' examples are run with, and what they write."""

import os
import shutil
from pathlib import Path

import pytest

from tests.walk.serving import ended

PROJECT = Path(__file__).parents[2]


def tool(name: str) -> str:
    """Where it is. CI has them all; elsewhere a missing one is told."""
    found = shutil.which(name)
    if found is None:
        missing(name)
    assert found is not None
    return found


def missing(name: str) -> None:
    """What a vendor's example needs is not here: a failure in CI, and told elsewhere."""
    why = f"the vendor's example needs {name}, and there is none here"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


async def output_of(*command: str) -> str:
    """What a program that does well writes. It runs where `.ci/run` puts the vendors' packages."""
    code, out, err = await ended(*command, cwd=PROJECT)
    assert code == 0, err
    return out
