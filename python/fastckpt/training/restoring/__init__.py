"""Restoring: compare everything -> load all states or none -> random numbers last."""

from .choices import Choices
from .restore import restore

__all__ = ["Choices", "restore"]
