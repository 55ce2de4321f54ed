"""What our OpenAPI says beyond what the framework says by itself."""

from litestar._openapi.schema_generation import SchemaCreator
from litestar._openapi.schema_generation.plugins.struct import StructSchemaPlugin
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.typing import FieldDefinition

from app.dialects.native import NewTask
from app.dialects.niyra import MAX_INSTRUCTION, NewExecution
from app.problems import MEDIA_TYPE, ProblemDetails

PROBLEM = ResponseSpec(ProblemDetails, media_type=MEDIA_TYPE, generate_examples=False)  # pyright: ignore[reportArgumentType]  # litestar: a media type of its own enum, or a string
"""What every refusal of our own API looks like."""


class OurSchemas(StructSchemaPlugin):
    """Structs that refuse unknown fields say so, and a new task's `agent` names those that there are: what is refused
    is told by the types that a client generates."""

    def __init__(self, agents: list[str]) -> None:
        self._agents = agents

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: SchemaCreator) -> Schema:
        """The framework's own schema, closed where the struct is."""
        schema = super().to_openapi_schema(field_definition, schema_creator)
        if field_definition.type_.__struct_config__.forbid_unknown_fields:
            schema.additional_properties = False
        if field_definition.type_ is NewTask and schema.properties is not None:
            one_of_them = Schema(type=OpenAPIType.STRING, enum=self._agents, description="an agent of GET /agents")
            schema.properties["agent"] = Schema(one_of=[one_of_them, Schema(type=OpenAPIType.NULL)])
        if field_definition.type_ is NewExecution and schema.properties is not None:
            # Needed unless a plan is confirmed, which is told in words: no client's type is the better for a choice.
            schema.required = ["instruction"]
            schema.properties["instruction"] = Schema(
                type=OpenAPIType.STRING, min_length=1, max_length=MAX_INSTRUCTION, pattern=r"\S"
            )
        return schema
