"""Hidden states of role texts, which the inner loop learns from."""
