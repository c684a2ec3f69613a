"""Training data as arrays: encoding, batches, packing."""
