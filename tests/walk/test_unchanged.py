"""`serve --port 8080 --token sk_test_123456`, and the examples of Shannon's page with nothing changed at all."""

import socket
import sys
from pathlib import Path

import msgspec

from tests.dialects.programs import missing, output_of, tool
from tests.walk.serving import serving

EXAMPLES = Path(__file__).parents[1] / "dialects" / "examples" / "shannon"


async def test_a_page_that_nobody_touched_works(tmp_path: Path):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError:
            missing("port 8080, free")
    for name in ("curl", "jq"):
        tool(name)
    async with serving(tmp_path, "--port", "8080", "--token", "sk_test_123456"):
        submitted = await output_of(sys.executable, str(EXAMPLES / "submit_and_wait.py"))
        task_id = submitted.splitlines()[0].removeprefix("Task submitted: ")
        assert submitted.endswith("Both agree, so this is short.\n")
        watched = await output_of(tool("bash"), str(EXAMPLES / "monitor.sh"), task_id)
        assert watched.endswith("✓ Task completed!\n\n" + submitted.split("\n", 1)[1])
        # The ids that the page itself names are of nobody's tasks here.
        assert await output_of(sys.executable, str(EXAMPLES / "get_task_status.py")) == ""
        told = msgspec.json.decode(await output_of(tool("bash"), str(EXAMPLES / "get_task.sh")), type=dict[str, str])
        assert told == {"error": "Task not found"}
