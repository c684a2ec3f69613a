"""Runs: from a configuration to a folder with links, results and a report."""
