"""What Shannon's clients submit: the wire struct, the rules of each field, and the wish in the domain's words."""

import hashlib
from typing import TypeVar
from uuid import uuid4

from msgspec import Struct

from app.agents.catalogue import Catalogue
from app.commands import CreateTask
from app.mistakes import decoded
from app.problems import BadRequest
from eventstore.codec import MAX_DEPTH, nested_over
from eventstore.events import ApprovalMode, Json

MAX_SESSION_ID = 512
ATTACHED = "Please look at what is attached."
"""The query of a submission that consists of attachments only."""

MODES = ("simple", "standard", "complex", "supervisor")
MODEL_TIERS = ("small", "medium", "large")
STRATEGIES = ("quick", "standard", "deep", "academic")
PROVIDERS = (
    *("openai", "anthropic", "google", "groq", "xai", "deepseek", "qwen"),
    *("zai", "kimi", "minimax", "ollama", "mistral", "cohere"),
)
MODELS = ("model_tier", "model_override", "provider_override")
TRUE = ("true", "1", "yes", "y")


class Submission(Struct, kw_only=True):
    """What is asked for; null is the same as absent, and other fields are passed over."""

    query: str | None = None
    session_id: str | None = None
    context: dict[str, Json] | None = None
    mode: str | None = None
    model_tier: str | None = None
    model_override: str | None = None
    provider_override: str | None = None
    research_strategy: str | None = None
    max_iterations: int | None = None
    max_concurrent_agents: int | None = None
    enable_verification: bool | None = None
    skill: str | None = None


Body = TypeVar("Body", bound=Struct)


def read(content: bytes, form: type[Body]) -> Body:
    """What a body says; of what type it says it is does not matter. Raises BadRequest."""
    try:
        return decoded(content, form)
    except BadRequest as error:
        raise BadRequest(f"Invalid request body: {error}") from error


def read_submission(content: bytes) -> Submission:
    """Raises BadRequest."""
    body = read(content, Submission)
    if body.context is not None and nested_over(list(body.context.values()), MAX_DEPTH + 1):
        raise BadRequest(f"Invalid request body: context is nested more than {MAX_DEPTH} levels deep")
    return body


def to_command(body: Submission, content: bytes, catalogue: Catalogue) -> CreateTask:
    """The wish in the domain's words; `content` is the body as it came. Raises BadRequest."""
    context = body.context or {}
    query = body.query or (ATTACHED if context.get("attachments") else "")
    if not query:
        raise BadRequest("Query is required")
    mode = one_of("mode", body.mode, MODES)
    options = options_of(body)
    if is_true(context.get("disable_ai")) and any(options.get(name) or context.get(name) for name in MODELS):
        raise BadRequest("disable_ai=true conflicts with model_tier/model_override")
    if body.session_id is not None and len(body.session_id) > MAX_SESSION_ID:
        raise BadRequest(f"session_id has at most {MAX_SESSION_ID} characters")
    metadata: dict[str, Json] = {"context": context} if context else {}
    if options:
        metadata["options"] = options
    return CreateTask(
        agent=agent_of(context, catalogue),
        fingerprint=digest_of(content),
        input=query,
        session_id=body.session_id or str(uuid4()),
        mode=mode,
        approval_mode=approval_of(context),
        dialect="shannon",
        metadata=metadata,
    )


def digest_of(content: bytes) -> str:
    """SHA-256 of a body as it came: under one idempotency key another body is another wish."""
    return hashlib.sha256(content).hexdigest()


def options_of(body: Submission) -> dict[str, Json]:
    """What was said of how to work, for agents that can follow it. Raises BadRequest."""
    options: dict[str, Json] = {
        "model_tier": one_of("model_tier", body.model_tier, MODEL_TIERS),
        "model_override": body.model_override or None,
        "provider_override": body.provider_override or None,
        "research_strategy": one_of("research_strategy", body.research_strategy, STRATEGIES),
        "max_iterations": within("max_iterations", body.max_iterations, 50),
        "max_concurrent_agents": within("max_concurrent_agents", body.max_concurrent_agents, 20),
        "enable_verification": body.enable_verification,
    }
    if body.provider_override and body.provider_override.strip().lower() not in PROVIDERS:
        raise BadRequest(f"Invalid provider_override: {body.provider_override[:64]} (allowed: {', '.join(PROVIDERS)})")
    if body.skill:
        raise BadRequest(f"Unknown skill: {body.skill[:128]}")
    return {name: said for name, said in options.items() if said is not None}


def one_of(name: str, said: str | None, allowed: tuple[str, ...]) -> str | None:
    """The word, in lower case; None where nothing was said. Raises BadRequest."""
    word = (said or "").strip().lower()
    if word and word not in allowed:
        raise BadRequest(f"Invalid {name} (allowed: {', '.join(allowed)})")
    return word or None


def within(name: str, said: int | None, most: int) -> int | None:
    """Raises BadRequest."""
    if said is not None and not 1 <= said <= most:
        raise BadRequest(f"{name} out of range (1..{most})")
    return said


def is_true(said: Json) -> bool:
    """Whether a flag of the context is set, in any of the vendor's ways."""
    match said:
        case str():
            return said.strip().lower() in TRUE
        case bool() | int() | float():
            return said != 0
        case _:
            return False


def approval_of(context: dict[str, Json]) -> ApprovalMode:
    """Whether a plan waits for its review."""
    manual = context.get("review_plan")
    asked = is_true(context.get("require_review")) or (isinstance(manual, str) and manual.strip().lower() == "manual")
    return "confirm" if asked else "auto"


def agent_of(context: dict[str, Json], catalogue: Catalogue) -> str:
    """The agent that the context names, or the deployment's own choice. Raises BadRequest."""
    agent = context.get("agent")
    if agent is None or agent == "":
        return catalogue.default
    if not isinstance(agent, str) or agent not in catalogue:
        raise BadRequest(f"Unknown agent: {str(agent)[:64]} (there are: {', '.join(catalogue.names)})")
    return agent
