"""What may happen next, and the doors."""

from importlib.metadata import version

__version__ = version("tasktrail")
