"""Settings tried on validation: one run of some, and which of many are looked at again."""

from typing import Any

import numpy as np

from fedray.config import make_config
from fedray.errors import FedrayError
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.job import Prepared
from fedray.methods import build
from fedray.yamls import laid
from tests.bench.results import ROOT

KEPT = ROOT / ".fedray" / "tune"
FINALISTS, FEWER, TRIED = 4, 2, (0, 1, 2)
Trial = dict[str, Any]


def value_of(raw: dict[str, Any], there: Prepared, rounds_: int = 0, seed: int = 0) -> float:
    """Best validation NDCG@10, within so many rounds if given; 0 where training breaks off."""
    more: dict[str, Any] = {"evaluation.controls": False, "runtime": {"executor": "serial"}, "seed": seed}
    try:
        config = make_config(laid(raw, more | ({"train.rounds": rounds_} if rounds_ else {})))
        method = build(config, there.data.n_items, there.dataset.features)
        executor, run = SerialExecutor([make_host(config, method, there.data)]), rounds.start(config, method)
        while not rounds.finished(run):
            run, _ = rounds.step(run, executor)
    except FedrayError as error:
        print(f"{type(error).__name__}: {error}"[:160], flush=True)
        return 0.0
    assert run.best is not None
    return run.best.value


def finalists(kept: list[Trial], few: bool) -> list[Trial]:
    """The settings that screened best and did not diverge since, and, where there is one, `off`."""
    drawn = [t for t in kept if "off" not in t and t["value"] > 0]
    return [t for t in kept if "off" in t] + sorted(drawn, key=lambda t: -t["value"])[: FEWER if few else FINALISTS]


def best_of(kept: list[Trial], few: bool = False) -> Trial | None:
    """The finalist with the best mean over seeds; None where all of them diverged."""
    found = [t for t in finalists(kept, few) if "full" in t]
    return max(found, key=lambda t: float(np.mean(t["full"])), default=None)
