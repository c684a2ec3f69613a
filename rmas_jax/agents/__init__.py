"""An agent: what it reads, thinks and writes."""
