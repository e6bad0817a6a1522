"""What a run says about itself in MLflow: names, params, tags, metrics. Pure functions, no MLflow.

Metric names have slashes, since MLflow's pages group by what stands before the first one: `train/`, `val/`,
`test/`, `control/`, `router/` (weights of views), `ablation/`, `content_gain/`, `time/` (seconds), `comm/` (MB of 10^6
bytes), `fed/` (clients); `encode/` of encode runs.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedray.config import RunConfig
from fedray.data.protocols import rules_of
from fedray.tracking.redact import redact
from fedray.tracking.tracker import RunStart, Stage, settings
from fedray.types import RoundReport

MB = 1e6
MAX_PARAM = 6000
MAX_TAG = 8000
MAX_NAME = 250
MAX_DIGEST = 36


@dataclass(frozen=True)
class Traffic:
    """MB since the first round."""

    down: float = 0.0
    up: float = 0.0

    def plus(self, report: RoundReport) -> "Traffic":
        """With this round's."""
        return Traffic(self.down + report.bytes_down / MB, self.up + report.bytes_up / MB)


def safe_name(name: str) -> str:
    """A name MLflow takes: one bad name would make it refuse the whole round. `ndcg@10` -> `ndcg_at_10`."""
    spelled = re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))
    return re.sub(r"/+", "/", spelled).strip("/ .")[:MAX_NAME] or "unnamed"


def finite(metrics: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """The finite ones under safe names, and how many were left out."""
    kept = {safe_name(k): float(v) for k, v in metrics.items() if math.isfinite(v)}
    return kept, len(metrics) - len(kept)


def round_metrics(report: RoundReport, total: Traffic) -> dict[str, float]:
    """All of one round's metrics; `total` includes this round."""
    times = {f"time/{stage}_s": seconds for stage, seconds in report.seconds.items()}
    return {
        **report.metrics,
        "time/round_s": sum(report.seconds.values()),  # overridden where the report times the whole round
        **times,
        "comm/mb_down": report.bytes_down / MB,
        "comm/mb_up": report.bytes_up / MB,
        "comm/total_mb_down": total.down,
        "comm/total_mb_up": total.up,
        "fed/clients_ok": report.clients_ok,
        "fed/clients_dropped": report.clients_dropped,
        "fed/clients_rejected": report.clients_rejected,
        "fed/rounds_abandoned": report.abandoned,
    }


def experiment_name(config: RunConfig, data_name: str, stage: Stage = "train") -> str:
    """One experiment per data and protocol, options included: only such runs can be compared. Encode runs have no
    protocol and one experiment per data."""
    kind = rules_of(config.evaluation).name if stage == "train" else "encoders"
    return config.tracking.experiment or f"fedray/{data_name}/{kind}"


def run_name(start: RunStart) -> str:
    """`pfedrec_ml100k-s0`; a name of the user's own gets the seed only where there are several. Nothing in an encode
    run depends on the seed: `pfedrec_ml100k-encode`."""
    config = start.config
    if start.stage == "encode":
        return f"{config.tracking.run_name or config.name}-encode"
    if config.tracking.run_name and (start.parent_id is None or start.bare):
        return config.tracking.run_name
    return f"{config.tracking.run_name or config.name}-s{config.seed}"


def family_name(config: RunConfig, seeds: Sequence[int]) -> str:
    """`pfedrec_ml100k-5-seeds`."""
    return f"{config.tracking.run_name or config.name}-{len(seeds)}-seeds"


def primary_metric(config: RunConfig, stage: Stage = "train") -> str:
    """What the protocol selects on (the first such metric), as it is logged; of encode runs the first one's speed."""
    if stage == "encode":
        return "/".join(["encode", *list(config.encoders)[:1], "items_per_s"])
    rules = rules_of(config.evaluation)
    return f"{'val' if rules.select_split == 'valid' else 'test'}/{rules.lead}"


def params(config: RunConfig, method: str) -> dict[str, str]:
    """Flat settings that can differ between two runs; the rest is in config/resolved.yaml."""
    # A plug-in with defaults only has no keys; that it is there is what differs.
    on = {f"plugins.{plugin}": "on" for plugin in config.plugins}
    found = {"method": method, "protocol": rules_of(config.evaluation).name}
    return _spelled({**found, **settings(config), **on})


def run_params(start: RunStart) -> dict[str, str]:
    """Of a run of either stage."""
    if start.stage == "encode":
        return _spelled(settings(start.config, "encode"))
    return params(start.config, start.method)


def _spelled(flat: Mapping[str, Any]) -> dict[str, str]:
    """As text, what is empty left out."""
    kept = {k: redact(_text(v)) for k, v in flat.items() if v not in ("", None, [], (), {})}
    return {safe_name(k): v[:MAX_PARAM] for k, v in kept.items()}


def tags(start: RunStart) -> dict[str, str]:
    """What identifies a run; `extra_tags` win."""
    method = {"fedray.method": start.method, "fedray.protocol": rules_of(start.config.evaluation).name}
    found = {
        "fedray.stage": start.stage,
        **(method if start.stage == "train" else {}),
        "fedray.config_fingerprint": start.config.fingerprint(),
        "fedray.data": str(start.dataset.get("name", "")),
        "fedray.data_fingerprint": str(start.dataset.get("fingerprint", "")),
        "mlflow.note.content": run_note(start),
        **({"mlflow.parentRunId": start.parent_id} if start.parent_id else {}),
        **({"fedray.run_id": start.run_id} if start.run_id else {}),
    }
    return clean_tags({**found, **start.extra_tags})


def clean_tags(found: Mapping[str, str]) -> dict[str, str]:
    """Without empty ones, cut to MLflow's limit, no credentials."""
    return {safe_name(k): redact(str(v))[:MAX_TAG] for k, v in found.items() if str(v)}


def run_note(start: RunStart) -> str:
    """The run's description in Markdown."""
    config = start.config
    if start.stage == "encode":
        return _encode_note(start)
    return (
        f"**{start.method}** on **{start.dataset.get('name', '')}**, seed {config.seed}, "
        f"{config.train.rounds} rounds, protocol `{rules_of(config.evaluation).name}`.\n\n"
        "The whole configuration is the artifact `config/resolved.yaml`, the plots are in `figures/`."
    )


def _encode_note(start: RunStart) -> str:
    made = ", ".join(f"`{feature}` by **{encoder.name}**" for feature, encoder in start.config.encoders.items())
    return (
        f"Items of **{start.dataset.get('name', '')}** encoded: {made or 'nothing'}.\n\n"
        "Training with the same `data` and `encoders` sections uses these embeddings. The whole configuration is the "
        "artifact `config/resolved.yaml`; where a picture `figures/contact_sheet_...` is there, it shows items beside "
        "those whose embeddings are nearest."
    )


def experiment_tags(start: RunStart) -> dict[str, str]:
    """What MLflow's pages say of the experiment of such runs. One of the user's own is for training, whoever came
    first."""
    stage: Stage = "train" if start.config.tracking.experiment else start.stage
    about = encoders_note if stage == "encode" else experiment_note
    return {
        "mlflow.experiment.primaryMetric.name": primary_metric(start.config, stage),
        "mlflow.experiment.primaryMetric.greaterIsBetter": "true",
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": about(start.config, start.dataset),
    }


def experiment_note(config: RunConfig, dataset: Mapping[str, Any]) -> str:
    """The description in Markdown of an experiment of training runs."""
    rules = rules_of(config.evaluation)
    return (
        f"Federated recommendation on **{dataset.get('name', '')}** ({_sizes(dataset)}).\n\n"
        f"Protocol `{rules.name}`: {rules.note}. Compare runs within this experiment only.\n\n"
        f"Read `{primary_metric(config)}` by round, then `test/` once, beside `control/`: a method that does "
        "not beat `control/popularity` has learnt nothing personal, and one that uses content should beat the "
        "`control/content_...` of each feature. `comm/` is in MB, `time/` in seconds, "
        "`fed/` counts clients. To see means over seeds, group the charts by the param `name`."
    )


def encoders_note(config: RunConfig, dataset: Mapping[str, Any]) -> str:
    """The description in Markdown of an experiment of encode runs."""
    return (
        f"Item images and texts of **{dataset.get('name', '')}** ({_sizes(dataset)}) turned into embeddings by "
        "`fedray encode`, before any training and without any interaction.\n\n"
        "A run says how fast that was and what could not be encoded, not how good the embeddings are. Read, for each "
        "feature, `encode/<feature>/items_per_s` by the number of items done; at the end `hit_rate`, the share that "
        "the store had already, `present` and `missing`, and `problem_...`, why they are missing (each item is in "
        "`problems.csv`). Compare speeds only between runs with the same `encoders` params on the same machine.\n\n"
        "For quality, look at the contact sheets in `figures/` (the nearest neighbours of an item should look or read "
        "like it), and at `control/content_...` in the training runs' experiment: what likeness alone is worth."
    )


def _sizes(dataset: Mapping[str, Any]) -> str:
    sizes = [f"{dataset[name]:,} {name}" for name in ("users", "items", "interactions") if name in dataset]
    return ", ".join(sizes) or "sizes unknown"


def digest(fingerprint: str) -> str:
    """At most 36 characters, which is what MLflow keeps."""
    return (fingerprint or "unknown")[:MAX_DIGEST]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
