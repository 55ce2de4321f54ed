"""What every peer's agent does: it waits until it is told to begin, then uses a tool so often, telling when each use
begins and ends, and when that was."""

import asyncio
import json
import time
from collections.abc import AsyncIterator


async def emitted(order: str) -> AsyncIterator[str]:
    """The words of each event. `order` is JSON: `steps`, `takes_ms` of each, and the port `gate` that says when."""
    asked = json.loads(order)
    if asked["gate"]:
        # Whoever listens may have to be there before the first event: only that says when, not how fast.
        reader, writer = await asyncio.open_connection("127.0.0.1", asked["gate"])
        await reader.readline()
        writer.close()
    for step in range(asked["steps"]):
        yield f"emit {time.time():.6f} tool {step} began"
        if asked["takes_ms"]:
            await asyncio.sleep(asked["takes_ms"] / 1000)
        yield f"emit {time.time():.6f} tool {step} ended"
        await asyncio.sleep(0)  # an agent waits for its tools, and the loop serves others meanwhile
