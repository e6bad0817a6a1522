"""Entrypoint for `ray job submit -- python jobs/evaluate.py FOLDER`: the same job as `fedray evaluate`."""

import sys

from fedray.cli import app, guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: app(["evaluate", *sys.argv[1:]], standalone_mode=True)))
