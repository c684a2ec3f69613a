"""`rmas run` as a file, for launchers that start files; see `rmas run --help`.

python experiments/run.py --config quickstart
"""

import sys

from rmas_jax.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
