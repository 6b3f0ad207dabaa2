"""`fastckpt.collect_garbage`: what interrupted saves have left behind. Imports no torch."""
