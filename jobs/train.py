"""Entrypoint for `ray job submit -- python jobs/train.py jobs/X.yaml`: the same job as `fedray train`."""

import sys

from fedray.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))
