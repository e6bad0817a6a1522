"""A training's entrypoint without the training.

Attempt 1 goes on until SIGTERM, then takes 4 s to commit and exits with 130; attempt 2 goes on from there and
breaks off with 75; attempt 3 is done. With DEAF set none of them hears SIGTERM.
"""

import os
import signal
import sys
import time
from pathlib import Path

import fedray
from fedray.status_line import RoundStatus, format_round

ROUNDS = 1000
kept = Path(os.environ["KEPT"])
attempts, committed = kept / "attempts", kept / "committed"


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def commit(number, frame):
    time.sleep(4)
    committed.write_text(str(reached))
    say(f"committed round {reached}")
    sys.exit(130)


def line():
    left = (ROUNDS - reached) // 10
    return format_round(RoundStatus(reached, ROUNDS, 0.5, 943, 0.1, left, "ndcg_at_10", 0.08, 0.09, 12, 0, 1))


attempt = len(attempts.read_text()) + 1 if attempts.exists() else 1
attempts.write_text("x" * attempt)
signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("DEAF") else commit)
reached = int(committed.read_text()) if committed.exists() else 0
name = Path(sys.argv[1]).read_text().splitlines()[1]
say(f"argv {sys.argv[1:]}, from round {reached}, {name}, {os.environ.get('ODD')!r}, {fedray.__file__}")
last = ROUNDS if attempt == 1 else reached + 3
while reached < last:
    reached += 1
    say(line())
    time.sleep(0.1)
committed.write_text(str(reached))
sys.exit(75 if attempt == 2 else 0)
