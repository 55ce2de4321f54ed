"""Our own API's checkpoints: have all that is in the log signed, now."""

from litestar import Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct

from app.dialects.asked import Asked
from app.openapi import PROBLEM
from eventstore.checkpointing import Signer


class SignedBody(Struct, frozen=True, kw_only=True):
    """The log's last checkpoint: its sequence (0: there is none, the log is empty), up to where it covers the log, and
    the public key (`ed25519:` and base64) that signed it."""

    sequence: int
    covers: int
    key: str


SIGNED = ResponseSpec(SignedBody, generate_examples=False, description="the last checkpoint")
RESPONSES = {200: SIGNED, 401: PROBLEM, 403: PROBLEM, 409: PROBLEM, 503: PROBLEM}


@post("/checkpoints", status_code=200, responses=RESPONSES, tags=["audit"])
async def sign_checkpoint(request: Asked, signer: NamedDependency[Signer]) -> Response[SignedBody]:
    """Sign all that is in the log now, if any of it is new, and say where that is. 409 where nobody here signs."""
    request.user.need("audit:all")
    signed = await signer.sign()
    return Response(SignedBody(sequence=signed.sequence, covers=signed.covers, key=signed.key))
