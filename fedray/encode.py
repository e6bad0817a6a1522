"""`fedray encode`: a job's items through its encoders into the store, tracked, with pictures of what came out."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedray.config import RunConfig, part_module
from fedray.data.dataset import describe, load
from fedray.data.protocols import rules_of
from fedray.embeddings import collect
from fedray.embeddings.content import image_bytes
from fedray.embeddings.fill import Step
from fedray.embeddings.report import FeatureReport, items_encoded
from fedray.encoders import Problem
from fedray.encoders._images import decode
from fedray.errors import MissingKeyError, Terminated
from fedray.progress import EncodeProgress, say, signals_raise
from fedray.runtime.features import with_features
from fedray.tracking.tracker import RunEnd, RunStart, Tracker, make_tracker
from fedray.types import Dataset

SHOWN_IDS = 10


def encode(config: RunConfig, console: Console) -> dict[str, Any]:
    """Encode what the store lacks; the summary of all features. Whatever happens, the run gets its end."""
    if not config.encoders:
        raise MissingKeyError("key 'encoders' is missing", "a value", "Write encoders: {text: {name: hashing}}.")
    with signals_raise():
        dataset = load(config.data, rules_of(config.evaluation))
        tracker = make_tracker(config.tracking)
        names = ", ".join(f"{e.name}" for e in config.encoders.values())
        tracker.start(RunStart(config, f"encode({names})", describe(dataset), stage="encode"))
        end = RunEnd("KILLED")
        try:
            dataset, reports = _tracked(config, dataset, tracker, console)
            end = _end(config, dataset, reports)
        except (KeyboardInterrupt, Terminated, SystemExit):
            raise
        except BaseException as error:
            end = RunEnd("FAILED", tags={"fedray.error": f"{type(error).__name__}: {error}"[:500]})
            raise
        finally:
            tracker.finish(end)
    _show(console, config, reports, tracker.where())
    return {"features": {r.feature: r.summary() for r in reports}}


def _tracked(
    config: RunConfig, dataset: Dataset, tracker: Tracker, console: Console
) -> tuple[Dataset, tuple[FeatureReport, ...]]:
    with EncodeProgress(console) as progress:

        def tell(feature: str, step: Step) -> None:
            rate = progress.show(feature, step)
            done = step.encoded + step.by_others + step.refused
            tracker.log_metrics(done, {f"encode/{feature}/items_per_s": rate, f"encode/{feature}/done": float(done)})

        return with_features(config, dataset, tell)


def _end(config: RunConfig, dataset: Dataset, reports: Sequence[FeatureReport]) -> RunEnd:
    texts = {
        "report.json": json.dumps({r.feature: r.summary() for r in reports}, indent=2),
        "problems.csv": problems_csv(reports),
    }
    tags = {f"fedray.feature.{r.feature}": f"{r.encoder} {r.fingerprint}" for r in reports}
    tags |= {"fedray.features_fingerprint": dataset.features.fingerprint if dataset.features else ""}
    sheets = contact_sheets(config, dataset) if config.tracking.log_item_media else {}
    metrics = {k: v for r in reports for k, v in _metrics(r).items()}
    return RunEnd("FINISHED", metrics, tags, texts, files=sheets)


def _metrics(report: FeatureReport) -> dict[str, float]:
    found = {
        "items_per_s": report.items_per_s,
        "hit_rate": report.hit_rate,
        "encoded": report.encoded,
        "stored": report.stored,
        "by_others": report.by_others,
        "present": report.present,
        "missing": report.items - report.present,
        "damaged": report.damaged,
        "restarts": report.restarts,
        **{f"{k}_s": v for k, v in report.seconds.items()},
        **{f"problem_{kind}": len(items) for kind, items in report.problems.items()},
    }
    return {f"encode/{report.feature}/{k}": float(v) for k, v in found.items()}


def problems_csv(reports: Sequence[FeatureReport]) -> str:
    """feature, item, kind, detail: every item without a feature."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["feature", "item", "kind", "detail"])
    for report in reports:
        writer.writerows([report.feature, i, kind, d] for kind, items in report.problems.items() for i, d in items)
    return out.getvalue()


def contact_sheets(config: RunConfig, dataset: Dataset) -> dict[str, bytes]:
    """`figures/contact_sheet_<feature>.png`: ten items and their nearest neighbours, by each feature."""
    from fedray.tracking.contact_sheet import choose_rows, contact_sheet
    from fedray.tracking.figures import png

    assert dataset.features is not None
    popularity = np.bincount(dataset.interactions.item, minlength=dataset.interactions.n_items)
    titles = _titles(dataset)
    sheets = {}
    for feature in config.encoders:
        vectors, present = dataset.features.tables[feature], dataset.features.present[feature]
        rows = choose_rows(present, popularity)
        title = f"{feature}: nearest neighbours by cosine"
        sheet = contact_sheet(vectors, present, titles, _posters(config, dataset), rows, title=title)
        sheets[f"figures/contact_sheet_{feature}.png"] = png(sheet)
    return sheets


def _titles(dataset: Dataset) -> list[str]:
    names = dataset.items["title"] if "title" in dataset.items else dataset.items["item"]
    return [str(v) if v == v and v is not None else str(i) for v, i in zip(names.tolist(), dataset.items["item"])]


def _posters(config: RunConfig, dataset: Dataset) -> Callable[[int], Image.Image | None]:
    draw = getattr(part_module("data.sources", config.data.source), "image_bytes", None)

    def poster(row: int) -> Image.Image | None:
        item = dataset.items.iloc[row]
        body = draw(item.to_dict()) if "image" not in dataset.items and draw else image_bytes(item.get("image"))
        picture = body if isinstance(body, Problem) else decode(body, config.encoding.max_pixels)
        return None if isinstance(picture, Problem) else picture

    return poster


def _show(console: Console, config: RunConfig, reports: Sequence[FeatureReport], where: str) -> None:
    for report in reports:
        say(console, report.line())
    if any(r.problems for r in reports):
        console.print(_problem_table(reports))
        say(
            console,
            f"these items lack the feature (data.missing: {config.data.missing}); problems.csv and --summary name each",
        )
    if not config.tracking.log_item_media:
        say(console, "for a sheet of nearest neighbours with posters and titles: --set tracking.log_item_media=true")
    say(console, items_encoded(sum(r.encoded for r in reports)))
    say(console, where)


def _problem_table(reports: Sequence[FeatureReport]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("feature", "problem", "items", "ids"):
        table.add_column(name, justify="right" if name == "items" else "left", overflow="fold")
    for report in reports:
        for kind, items in report.problems.items():
            ids = ", ".join(i for i, _ in items[:SHOWN_IDS]) + ", ..." * (len(items) > SHOWN_IDS)
            table.add_row(report.feature, kind, f"{len(items):,}", ids)
    return table


def verify(config: RunConfig, console: Console) -> bool:
    """Read the store to the last byte; whether every row of every encoder is sound."""
    found = collect.verify(Path(config.encoding.store))
    say(console, found.text())
    return found.whole


def gc(config: RunConfig, console: Console, older_than_days: float) -> dict[str, Any]:
    """Drop what no catalogue uses, pack the rest."""
    found = collect.gc(Path(config.encoding.store), older_than_days)
    say(console, found.text())
    return dict(vars(found))
