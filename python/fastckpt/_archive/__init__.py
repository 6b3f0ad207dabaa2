"""How one .pt file is written and read: the counterparts of torch.save and torch.load."""
