"""One study per figure or table."""
