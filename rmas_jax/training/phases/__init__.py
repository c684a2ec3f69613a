"""Phases: resumable training of links or of an adapter, with checks, curves and checkpoints."""
