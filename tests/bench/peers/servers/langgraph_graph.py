"""A graph of one node, served by LangGraph's in-memory server; it tells its progress by the stream writer."""

from typing import TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from work import emitted


class State(TypedDict, total=False):
    order: str
    result: str


async def emit(state: State) -> State:
    write = get_stream_writer()
    async for words in emitted(state["order"]):
        write({"progress": words})
    return {"result": "done"}


graph = StateGraph(State).add_node("emit", emit).add_edge(START, "emit").add_edge("emit", END).compile()
