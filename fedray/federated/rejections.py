"""Who was refused in a round and for what, as it is reported and summed; and when that is too much.

The reasons are those of `admission`. A few refused clients are counted, and the round is that of the others. Where they
are more than `train.max_rejected` of it, or all, the others stand for nobody, and the run ends: divergence cannot hide.
"""

from collections.abc import Mapping
from typing import NamedTuple

from fedray.errors import AggregateOverflowError, NonFiniteLossError, RejectedUpdatesError, TrainingError

SHAPE, ROWS, NOT_FINITE, OUT_OF_RANGE, NORM = REASONS = ("shape", "rows", "not_finite", "out_of_range", "norm")
NAMED = 5
"""So many clients are named in an error."""


class Refused(NamedTuple):
    """Clients that were refused for one reason: their number, and the few smallest ids. found: more about the first
    one's update, where there is more to say."""

    number: int
    first: tuple[int, ...]
    found: str = ""


Rejected = Mapping[str, Refused]
"""Reason -> those refused for it; nothing where there are none."""


def both(a: Rejected, b: Rejected) -> Rejected:
    """Those of two hosts. Which of them comes first does not matter."""
    return {k: _merged(a[k], b[k]) if k in a and k in b else a.get(k) or b[k] for k in REASONS if k in a or k in b}


def _merged(a: Refused, b: Refused) -> Refused:
    found = min(a, b, key=lambda r: r.first).found
    return Refused(a.number + b.number, tuple(sorted(a.first + b.first)[:NAMED]), found)


def counted(rejected: Rejected) -> int:
    """How many clients."""
    return sum(r.number for r in rejected.values())


def require_enough(round_: int, admitted: int, rejected: Rejected, most: float) -> None:
    """A round whose clients were all refused, or more than this ratio of them, is no round of which to take the rest:
    it raises what most of them have."""
    count = counted(rejected)
    if count and (not admitted or count > most * (admitted + count)):
        reason = max(rejected, key=lambda k: rejected[k].number)
        raise bad_updates(round_, reason, rejected[reason], admitted + count, most)


def bad_updates(round_: int, reason: str, who: Refused, of: int, most: float) -> TrainingError:
    """The error for so many bad updates of a round."""
    kind, what, mend = _ERRORS[reason]
    more = " ..." if who.number > len(who.first) else ""
    found = f"round {round_}: {what} of {who.number} of {of} clients (clients {list(who.first)}{more})"
    expected = f"at most {most:.0%} of a round's clients refused (train.max_rejected), and not all"
    return kind(f"{found}: {who.found}" if who.found else found, expected, mend)


_LOWER = "Lower backbone.lr or the learning-rate scales."
_FAULT = "A client, or the method, does not do what the method declares."
_ERRORS: Mapping[str, tuple[type[TrainingError], str, str]] = {
    SHAPE: (RejectedUpdatesError, "wrong shapes in the updates", _FAULT),
    ROWS: (RejectedUpdatesError, "wrong or repeated rows in the updates", _FAULT),
    NOT_FINITE: (NonFiniteLossError, "NaN or infinity in the loss or the update", _LOWER),
    OUT_OF_RANGE: (
        AggregateOverflowError,
        "numbers beyond fixed point (2^30) in the updates",
        f"They have probably diverged. {_LOWER}",
    ),
    NORM: (RejectedUpdatesError, "a norm above train.max_update_norm", f"Raise train.max_update_norm. {_LOWER}"),
}
