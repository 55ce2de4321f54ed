"""How many files the service's processes may have open: all that the system lets them, and they say when it is few."""

import asyncio
import json
import resource
import sys
from pathlib import Path

import pytest

from tests.walk.serving import WITHIN_S, family, serving

RAISED = """
import resource, sys
from app.logs import configure_logs
from app.open_files import raise_open_files
configure_logs("warning", process="test")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))
raise_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


async def raised(hard: int) -> tuple[str, str]:
    """The limits of a process that had few, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RAISED, str(hard)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
    return out.decode().strip(), err.decode()


async def test_all_that_the_system_gives_is_taken_and_where_it_is_few_one_line_says_so():
    limits, said = await raised(9_000)
    assert limits == "9000 9000"
    assert said.count("\n") == 1
    line = json.loads(said)
    assert (line["event"], line["limit"], "each stream takes one" in line["advice"]) == ("open_files.few", 9_000, True)
    assert await raised(10_000) == ("10000 10000", "")


@pytest.mark.skipif(sys.platform != "linux", reason="asks for another process's limits")
async def test_all_processes_of_serve_have_them_and_only_one_says_so(tmp_path: Path):
    async with serving(tmp_path, open_files=(256, 4_096)) as service:
        for pid in (service.process.pid, *family(service.process.pid).values()):
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (4_096, 4_096)
        assert service.logs.count("open_files.few") == 1
