"""`fastckpt.repair`: what is good in a damaged file, written into a new one."""
