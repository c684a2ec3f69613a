"""The inner loop: each link alone, on states of texts."""
