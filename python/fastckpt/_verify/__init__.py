"""`fastckpt.verify`: every byte of every file compared. Imports no torch."""
