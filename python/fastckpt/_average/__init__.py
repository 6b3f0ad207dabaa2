"""`fastckpt.average_files`: the mean of several checkpoints' models."""
