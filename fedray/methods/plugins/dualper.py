"""Dual personalisation of PFedRec: Zhang et al., IJCAI 2023 (arXiv 2301.08143). PFedRec = dualper(fcf).

Two things change for whatever backbone it wraps:
1. every local step becomes two: first all parameters but the item tables (the paper's score function theta^s), then
   the item tables alone, with the gradient at the new score function (theta^m, "post-tuning");
2. a client ranks with its own tuned item rows, not with the table aggregated afterwards.

The paper's item learning rate for PFedRec is eta * M * 80: fcf's eta * M times `item_lr_scale` = 80.
"""

from pydantic import Field

from fedray.config import Closed
from fedray.errors import UnsupportedError
from fedray.federated.local import Phase
from fedray.federated.method import Method
from fedray.methods.context import Context


class Config(Closed):
    """Settings of the plug-in."""

    item_lr_scale: float = Field(80.0, gt=0, description="times the backbone's item learning rate (lr_eta)")


def wrap(inner: Method, config: Config, context: Context) -> Method:
    """`inner` with dual personalisation; of what makes item rows, the backbone inside."""
    if inner.within is not None:
        made = inner.within(lambda backbone: wrap(backbone, config, context))
        return made._replace(name=f"dualper({inner.name})", noise=inner.noise)
    tables = inner.row_tables
    if inner.collects:
        raise UnsupportedError(
            f"dualper on {inner.name}",
            "a backbone whose clients rank with the aggregated item table",
            f"{inner.name} ranks with each client's own table already: leave dualper out.",
        )

    def split(phase: Phase) -> tuple[Phase, ...]:
        score_function = {k: lr for k, lr in phase.items() if k not in tables}
        items = {k: lr * config.item_lr_scale for k, lr in phase.items() if k in tables}
        return tuple(p for p in (score_function, items) if p)

    def phases(round_: int) -> tuple[Phase, ...]:
        return tuple(part for phase in inner.phases(round_) for part in split(phase))

    return inner._replace(name=f"dualper({inner.name})", phases=phases, tuned=inner.shared_rows)
