"""Our own API's documents for programs, beside its OpenAPI and, like that, for everybody."""

from litestar import Response, get

from app.schemas import asyncapi, facts_schema


@get("/docs/asyncapi.json", include_in_schema=False)
async def get_asyncapi() -> Response[bytes]:
    """What can be followed, as AsyncAPI."""
    return Response(asyncapi(), media_type="application/json")


@get("/docs/facts.schema.json", include_in_schema=False)
async def get_facts_schema() -> Response[bytes]:
    """The records and their facts, as JSON Schema."""
    return Response(facts_schema(), media_type="application/schema+json")
