"""The largest numbers that a configuration and the command lines take."""

# Larger values than anyone has use for would end in memory or time that no machine has.
MAX_ROUNDS = 16
MAX_LATENT_STEPS = 16_384
MAX_TOKENS = 131_072  # of a text
MAX_ROLLOUTS = 10_000
MAX_BATCH = 65_536  # items
MAX_STEPS = 10_000_000
MAX_INNER_BATCH = 2**20  # tokens
MAX_NAME = 100  # bytes; a file name may have 255, and some is put behind it
MAX_DEVICES = 65_536
MAX_SEED = 2**32 - 1
