"""What several of the `audit` commands are told in the same way."""

from importlib.util import find_spec

from app.replies import NotTried


def needs(package: str, option: str) -> None:
    """Before much is done: is that package of the extra `audit` here? Raises NotTried."""
    if find_spec(package) is None:
        raise NotTried(f"{option} needs {package}: pip install 'tasktrail[audit]'")
