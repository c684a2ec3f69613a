"""A resident team that answers requests: the engine, and the programs that speak to it."""
