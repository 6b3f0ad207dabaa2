"""`fastckpt.diff`: how far two checkpoints are apart. Imports no torch."""
