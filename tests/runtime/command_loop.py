"""`fedray` without its start-up: command lines as JSON on stdin, `[exit code, stdout, stderr]` as JSON on stdout."""

import contextlib
import io
import json
import sys

from fedray.cli import run


def answer(args):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(args)
        except SystemExit as end:
            code = end.code or 0
    return [code, out.getvalue(), err.getvalue()]


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
