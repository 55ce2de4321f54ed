"""What most would write first: FastAPI, tasks in a dictionary, a queue for each listener, sse-starlette."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from work import emitted

app = FastAPI()


class NewTask(BaseModel):
    input: str


class Task(BaseModel):
    task_id: str
    status: Literal["running", "completed"] = "running"
    input: str
    result: str | None = None


@dataclass
class Kept:
    task: Task
    events: list[str] = field(default_factory=list)
    listeners: set[asyncio.Queue[str | None]] = field(default_factory=set)


tasks: dict[str, Kept] = {}
running: set[asyncio.Task[None]] = set()


async def run(kept: Kept) -> None:
    """The agent: every listener's queue gets each event."""
    async for words in emitted(kept.task.input):
        kept.events.append(words)
        for listener in kept.listeners:
            listener.put_nowait(words)
    kept.task.status, kept.task.result = "completed", "done"
    for listener in kept.listeners:
        listener.put_nowait(None)


@app.post("/tasks", status_code=201)
async def create(new: NewTask) -> Task:
    task = Task(task_id=str(uuid.uuid4()), input=new.input)
    kept = tasks[task.task_id] = Kept(task)
    running.add(under_way := asyncio.create_task(run(kept)))
    under_way.add_done_callback(running.discard)
    return task


def found(task_id: str) -> Kept:
    if task_id not in tasks:
        raise HTTPException(404)
    return tasks[task_id]


@app.get("/tasks/{task_id}")
async def poll(task_id: str) -> Task:
    return found(task_id).task


@app.get("/tasks/{task_id}/events")
async def stream(task_id: str) -> EventSourceResponse:
    return EventSourceResponse(listened(found(task_id)))


async def listened(kept: Kept) -> AsyncIterator[dict[str, str]]:
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    for words in kept.events:
        queue.put_nowait(words)
    if kept.task.status == "completed":
        queue.put_nowait(None)
    kept.listeners.add(queue)
    try:
        while (words := await queue.get()) is not None:
            yield {"event": "progress", "data": words}
    finally:
        kept.listeners.discard(queue)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="error", access_log=False)
