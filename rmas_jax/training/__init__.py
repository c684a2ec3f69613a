"""The two loops that train links: inner (one agent) and outer (the whole system)."""
