"""Hidden states of role texts, the training data of the inner loop."""
