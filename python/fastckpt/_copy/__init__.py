"""`fastckpt.copy_checkpoint`: checkpoints moved to another disk, verified on the way."""
