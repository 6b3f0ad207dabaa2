"""Which checkpoint files a directory has, and which save each is of. Imports no torch."""
