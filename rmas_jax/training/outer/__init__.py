"""The outer loop: all links together, through the unrolled rounds."""
