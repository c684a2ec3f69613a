"""Grading, intervals, and the driver that measures methods."""
