"""Evaluation protocols: what a test score means. Each is one small declarative object.

`clean` is fedray's own and the default (a paper's rules under `paper/<method>` reproduce its tables and
say so). Numbers of different protocols are not comparable: HR@10 of 0.7 among 99 sampled negatives and
HR@10 of 0.1 in full ranking can come from the same model.
"""

from dataclasses import dataclass
from typing import Literal

from fedray.config import nearest_hint
from fedray.errors import UnknownNameError

N_CANDIDATES = 99


@dataclass(frozen=True)
class Protocol:
    """One set of rules.

    negatives_spare: which of a client's items training negatives avoid: only its training items (the
      client cannot know its future), or every item it has in any split (what the authors' code does: it
      tells the model which items are *not* held out).
    rankings: the first gives the plain metric names (`ndcg_at_10`), further ones are prefixed
      (`sampled99_ndcg_at_10`). `full` ranks all items but the client's known ones (for test: training and
      validation items); `sampled99` ranks the target among 99 items the client has in no split.
    select_on: the validation metric that chooses the round; `select_ties` says which round wins a tie.
    Ties between scores are always pessimistic: the target comes last.
    """

    name: str
    negatives_spare: Literal["train", "all"]
    rankings: tuple[Literal["full", "sampled99"], ...]
    select_on: str
    select_ties: Literal["first", "last"]
    test: Literal["selected", "every_round"]
    permute_items: bool
    note: str

    def prefix(self, ranking: str) -> str:
        """'' for the protocol's own ranking, else e.g. 'sampled99_'."""
        return "" if ranking == self.rankings[0] else f"{ranking}_"


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            name="clean",
            negatives_spare="train",
            rankings=("full", "sampled99"),
            select_on="ndcg_at_10",
            select_ties="first",
            test="selected",
            permute_items=True,
            note="full ranking; negatives know only the training items; selected on validation NDCG@10",
        ),
        Protocol(
            name="paper/pfedrec",
            negatives_spare="all",
            rankings=("sampled99",),
            select_on="hr_at_10",
            select_ties="last",
            test="every_round",
            permute_items=False,
            note="PFedRec's own rules: 99 sampled candidates; training negatives spare the held-out items, "
            "which leaks them (compare the local_only control)",
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol of that name."""
    if name not in PROTOCOLS:
        raise UnknownNameError(
            f"protocol {name!r} does not exist",
            f"one of {', '.join(PROTOCOLS)}",
            nearest_hint(name, list(PROTOCOLS)),
        )
    return PROTOCOLS[name]
