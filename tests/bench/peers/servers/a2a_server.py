"""a2a-sdk's own server, as its tutorial builds it: the default request handler, tasks in memory, Starlette, uvicorn."""

import sys

import uvicorn
from a2a.helpers import new_task_from_user_message, new_text_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, TaskState
from starlette.applications import Starlette
from work import emitted


class Emitter(AgentExecutor):
    """Tells its progress by status updates, and its result by an artifact, as the SDK's samples do."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        async for words in emitted(context.get_user_input()):
            await updater.update_status(TaskState.TASK_STATE_WORKING, new_text_message(words))
        await updater.add_artifact([new_text_part("done")])
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError


def application(url: str) -> Starlette:
    """Over HTTP and JSON, one of the protocol's three bindings: GET for a poll, as everywhere here."""
    card = AgentCard(
        name="Emitter",
        description="Emits events.",
        version="1",
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        capabilities=AgentCapabilities(streaming=True),
        supported_interfaces=[AgentInterface(protocol_binding="HTTP+JSON", url=url)],
        skills=[AgentSkill(id="emit", name="Emit", description="Emits events.", tags=["emit"])],
    )
    handler = DefaultRequestHandler(agent_executor=Emitter(), task_store=InMemoryTaskStore(), agent_card=card)
    return Starlette(routes=[*create_agent_card_routes(card), *create_rest_routes(handler)])


if __name__ == "__main__":
    port = int(sys.argv[1])
    app = application(f"http://127.0.0.1:{port}")
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="error", access_log=False)
