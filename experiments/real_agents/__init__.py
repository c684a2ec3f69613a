"""Studies of pretrained agents, out of wheels of the Python package index."""
