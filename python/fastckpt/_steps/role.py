"""What a file is in its step."""

from typing import Literal

Role = Literal["model", "optimizer", "meta", "manifest", "other", "directory"]
