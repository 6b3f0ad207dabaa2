"""The fault harnesses, run for hours instead of minutes; see docs/testing.md."""
