"""Tuning: an adapter of the answerer alone learns the final answers, as a baseline of links."""
