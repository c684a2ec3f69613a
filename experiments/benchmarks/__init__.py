"""Speed and memory, against torch and against the size of the files."""
