"""The key that signs the checkpoints: an Ed25519 key in a PEM file, readable by its user alone."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from eventstore.lock import write_privately
from projections.proof import BadKey


def audit_key(path: Path) -> Ed25519PrivateKey:
    """The file's key; a new one where there is no file. (`openssl genpkey -algorithm ed25519` makes such files, too.)

    Raises BadKey."""
    try:
        if not path.exists():
            _make(path)
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKey(f"{path} can't be used as the audit key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey(f"{path} can't be used as the audit key: it is no Ed25519 key")
    return key


def _make(path: Path) -> None:
    """A new key, unless another process is quicker: then its key is everybody's."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    key = Ed25519PrivateKey.generate()
    write_privately(draft, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
