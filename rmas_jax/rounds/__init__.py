"""Rounds of agents: stages, channels and the scan over rounds."""
