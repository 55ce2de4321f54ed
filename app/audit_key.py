"""The key that signs the checkpoints: an Ed25519 key in a PEM file, readable by its user alone."""

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
            made = Ed25519PrivateKey.generate()
            write_privately(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKey(f"{path} can't be used as the audit key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey(f"{path} can't be used as the audit key: it is no Ed25519 key")
    return key
