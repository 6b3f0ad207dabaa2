"""`fastckpt.inspect`: listings of files and of directories. Imports no torch."""
