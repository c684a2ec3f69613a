"""The largest numbers allowed in configurations and command lines."""

# Larger values would exceed the memory or time of any machine.
MAX_ROUNDS = 16
MAX_LATENT_STEPS = 16_384
MAX_TOKENS = 131_072  # of a text
MAX_ROLLOUTS = 10_000
MAX_NEAREST = 16  # tokens shown of a vector
MAX_BATCH = 65_536  # items
MAX_RANK = 4_096
MAX_VECTORS = 131_072  # of a soft prompt
MAX_STEPS = 10_000_000
MAX_INNER_BATCH = 2**20  # tokens
MAX_NAME = 100  # bytes; file names add to it and have at most 255
MAX_DEVICES = 65_536
MAX_SEED = 2**32 - 1
