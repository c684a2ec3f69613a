"""An agent: reading, thinking and writing."""
