"""Entrypoint for `ray job submit -- python jobs/tune.py tune_configs/X.yaml`: the same sweep as `fedray tune`."""

import sys

from fedray.cli import run

if __name__ == "__main__":
    sys.exit(run(["tune", *sys.argv[1:]]))
