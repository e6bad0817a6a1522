"""Entrypoint for `ray job submit -- python jobs/evaluate.py FOLDER`: the same job as `fedray evaluate`."""

import sys

from fedray.cli import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", *sys.argv[1:]]))
