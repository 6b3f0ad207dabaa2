"""What a file holds, seen without torch and without reading its tensors."""
