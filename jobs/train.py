"""Entrypoint for `ray job submit -- python jobs/train.py jobs/X.yaml`: the same job as `fedray train`."""

import sys

from fedray.cli import app, guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: app(["train", *sys.argv[1:]], standalone_mode=True)))
