"""Runs an experiment from a configuration file to a report; `rmas run` is the same.

python experiments/run.py --config experiments/configs/quickstart.yaml
"""

import sys

from rmas_jax.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
