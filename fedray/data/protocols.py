"""Evaluation protocols: what a test score means. Each is one small declarative object.

`clean` is fedray's own and the default: the defaults of `Protocol` are its rules. A paper's rules under
`paper/<method>` follow that paper's own code, defects included, to compare with its tables, and say so. Numbers of
different protocols are not comparable: HR@10 of 0.7 among 99 sampled negatives and HR@10 of 0.1 in full ranking can
come from the same model.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedray.config import nearest_hint
from fedray.errors import UnknownNameError, UnsupportedError
from fedray.sections import EvaluationConfig, Ranking, Ties
from fedray.types import Split

N_CANDIDATES = 99
KINDS = ("hr", "recall", "ndcg", "mrr")


@dataclass(frozen=True)
class Protocol:
    """One set of rules. What comes with a warning is a defect of somebody's code, kept to reproduce its tables.

    rankings: the first gives the plain metric names (`ndcg_at_10`), further ones are prefixed
      (`sampled99_ndcg_at_10`). `full` ranks all items but those a client knows by then: its training items, for
      test its validation items too. `full_minus_train` leaves out training items only, so that validation items
      compete at test. `full_minus_all` ranks the targets and what the client has in no split. `sampled99` ranks a
      target among 99 items the client has in no split.
    share_candidates: the same 99 for validation and test; else 99 and 99 others.
    negatives: drawn anew every round, or the lowest ids, always the same ones (warning: other ids are never
      pushed down, so ranks depend on how items are numbered).
    negatives_spare: which of a client's items training negatives avoid: only its training items (the
      client cannot know its future), or every item it has in any split (warning: it tells the model which
      items are held out).
    ties: what comes first among equal scores. pessimistic: the target last. index: the lowest item id (warning:
      a constant score then earns whatever the numbering of the items gives away; on one data set of FedVLR's
      this equals its best published result). random: an order of each client's own, the same in every round.
    mask_item0: the item with the dense id 0 comes last (warning: a client that holds it out cannot be served).
    permute_items: dense item ids are drawn at random, so that they say nothing.
    scored_table: of item tables that a method tunes, the client's own or (aggregated) the current broadcast.
      A client that never trained is scored with the current broadcast and its initial private parameters, under every
      protocol (the authors of PFedRec take the initial model).
    select_on: the metrics that choose a round each; test metrics are the mean over these rounds. The first one
      leads: its round is kept, it is shown while a run goes, and central EASE takes its lambda by it.
    select_split: what the round is chosen on (warning: with test, the test set is no longer held out).
    select_ties: which round wins among equals. test: whether the test set is scored once or at every validation.
    """

    name: str
    note: str
    rankings: tuple[Ranking, ...] = ("full", "sampled99")
    share_candidates: bool = False
    negatives: Literal["uniform_resampled", "fixed_lowest"] = "uniform_resampled"
    negatives_spare: Literal["train", "all"] = "train"
    ties: Ties = "pessimistic"
    mask_item0: bool = False
    permute_items: bool = True
    scored_table: Literal["own", "aggregated"] = "own"
    select_on: tuple[str, ...] = ("ndcg_at_10",)
    select_split: Split = "valid"
    select_ties: Literal["first", "last"] = "first"
    test: Literal["selected", "every_round"] = "selected"

    @property
    def lead(self) -> str:
        """The first of `select_on`."""
        return self.select_on[0]

    def prefix(self, ranking: str) -> str:
        """'' for the protocol's own ranking, else e.g. 'sampled99_'."""
        return "" if ranking == self.rankings[0] else f"{ranking}_"

    def cutoffs(self, ranking: str, ks: Collection[int]) -> list[int]:
        """The K that say something: among 99 candidates none above 99."""
        return [k for k in ks if ranking != "sampled99" or k <= N_CANDIDATES]

    def metrics(self, ks: Collection[int]) -> list[str]:
        """The names of all metrics at these cut-offs."""
        return [f"{self.prefix(r)}{kind}_at_{k}" for r in self.rankings for kind in KINDS for k in self.cutoffs(r, ks)]


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            name="clean",
            note="full ranking; negatives know only the training items; selected on validation NDCG@10",
        ),
        Protocol(
            name="paper/pfedrec",
            note="PFedRec's own rules: 99 sampled candidates; training negatives spare the held-out items, "
            "which leaks them (compare the local_only control)",
            rankings=("sampled99",),
            negatives_spare="all",
            permute_items=False,
            select_on=("hr_at_10",),
            select_ties="last",
            test="every_round",
        ),
        Protocol(
            name="paper/fedrap",
            note="FedRAP's own rules: THE ROUND IS CHOSEN BY ITS TEST HR@10, so no test number is held out; the same "
            "99 sampled candidates for validation and test; training negatives spare the held-out items, which "
            "leaks them (compare the local_only control)",
            rankings=("sampled99",),
            share_candidates=True,
            negatives_spare="all",
            permute_items=False,
            scored_table="aggregated",
            select_on=("hr_at_10",),
            select_split="test",
            select_ties="last",
            test="every_round",
        ),
        Protocol(
            name="paper/fedvlr",
            note="FedVLR's own rules: full ranking in which validation items compete at test; ties go to the lowest "
            "item id, which pays a constant score (compare the constant control); the paper's v4 code also has "
            "mask_item0=true, and stops after 20 validations without a new best (train.patience)",
            rankings=("full_minus_train",),
            ties="index",
            permute_items=False,
            scored_table="aggregated",
            select_on=("hr_at_50",),
        ),
        Protocol(
            name="paper/gfmfr",
            note="GFMFR's own rules: full ranking; the mean of the rounds best by validation HR@50 and NDCG@50; "
            "training negatives are the lowest free item ids, always the same, and spare the held-out items, which "
            "leaks them where their ids are low; stops after 10 validations without a new best (train.patience)",
            rankings=("full_minus_all",),
            negatives="fixed_lowest",
            negatives_spare="all",
            permute_items=False,
            scored_table="aggregated",
            select_on=("hr_at_50", "ndcg_at_50"),
            test="every_round",
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


def rules_of(config: EvaluationConfig) -> Protocol:
    """The named protocol with the options laid over it; what they change stands in its name and note."""
    plain = protocol(config.protocol)
    asked = {k: v for k, v in config.options if v is not None}
    other = {k: v for k, v in asked.items() if v != getattr(plain, k)}
    rules = replace(plain, **other)
    if rules.select_split == "test" and config.test == "selected":
        raise UnsupportedError(
            f"protocol {config.protocol} chooses the round on the test set and evaluation.test is selected",
            "evaluation.test: every_round, or evaluation.options.select_split: valid",
        )
    if not other:
        return plain
    said = ", ".join(f"{k}={_said(v)}" for k, v in other.items())
    own = ", ".join(f"{k}={_said(getattr(plain, k))}" for k in other)
    return replace(rules, name=f"{plain.name} + {said}", note=f"{plain.note}; BUT {said} (instead of {own})")


def _said(value: Any) -> str:
    """As it stands in a configuration: `true`, `hr_at_50,ndcg_at_50`."""
    return ",".join(value) if isinstance(value, tuple) else str(value).lower()
