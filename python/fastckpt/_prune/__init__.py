"""`fastckpt.prune`: which old checkpoints go, and their removal. Imports no torch."""
