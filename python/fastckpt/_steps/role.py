"""The role of a file in its step."""

from typing import Literal

Role = Literal["model", "optimizer", "meta", "manifest", "other", "directory"]
