"""Entrypoint for `ray job submit -- python jobs/encode.py jobs/X.yaml`: the same job as `fedray encode`."""

import sys

from fedray.cli import run

if __name__ == "__main__":
    sys.exit(run(["encode", *sys.argv[1:]]))
