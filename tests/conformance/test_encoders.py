"""The bench that every encoder passes, with images and with texts. A new module must name its settings here."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import yaml

from fedray.config import make_config, names_in, part_module, to_yaml
from fedray.encoders import Problem, fingerprint
from tests.encoders import models

INPUTS = ("image", "text")
CASES = [(name, input) for name in names_in("encoders") for input in INPUTS]
EACH = pytest.mark.parametrize("case", CASES, ids="-".join)
PLENTY = 1_000_000
N = 64


@cache
def _table():
    folder = models.place("table")
    folder.mkdir()
    np.save(folder / "rows.npy", np.random.default_rng(0).standard_normal((N, 12)).astype(np.float32))
    return folder / "rows.npy"


def settings(name, input):
    """What the module needs beside its defaults: a tiny model, never the network."""
    transformer = models.bert_folder if input == "text" else models.vit_folder
    return {
        "hashing": dict,
        "open_clip": lambda: {"model": f"local-dir:{models.open_clip_folder()}"},
        "transformers": lambda: {"model": str(transformer())},
        "precomputed": lambda: {"path": str(_table())},
    }[name]()


@cache
def config_of(case):
    name, input = case
    return make_config({"encoders": {input: {"name": name, **settings(name, input)}}}).encoders[input]


def module_of(case):
    return part_module("encoders", case[0])


def make(case):
    return module_of(case).make(config_of(case), "cpu", PLENTY)


made = cache(make)


@cache
def raws(case):
    if getattr(module_of(case), "BY_ID", False):
        return tuple(str(i) for i in range(N))
    return tuple(models.texts(N) if case[1] == "text" else models.pictures(N))


def broken(case):
    """Raw items that have no embedding, and the kinds their problems may be of."""
    both = {"": {"empty_text", "wrong_type", "no_image", "no_text"}, b"": {"empty_file", "wrong_type"}}
    if getattr(module_of(case), "BY_ID", False):
        return {**both, str(N): {"no_image", "no_text"}, "nobody": {"no_image", "no_text"}, b"1": {"wrong_type"}}
    if case[1] == "text":
        texts = {" \n": {"empty_text"}, "half \ud800 a pair": {"not_utf8"}}
        return {**both, **texts, models.picture(0): {"wrong_type"}}
    whole = models.picture(0)
    cut = {whole[: len(whole) // 2]: {"truncated"}, models.picture(0, (1200, 900)): {"too_large"}}
    return {**both, **cut, b"<html>": {"not_an_image"}, "a text": {"wrong_type"}}


@cache
def embedded(case):
    """All items in one batch."""
    return made(case).embed([made(case).prepare(raw) for raw in raws(case)])


@EACH
def test_the_description_is_json_and_stable(case):
    said = module_of(case).describe(config_of(case))
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert (said["name"], said["input"]) == case
    assert fingerprint(said) == fingerprint(module_of(case).describe(config_of(case)))


def test_descriptions_differ():
    assert len({fingerprint(module_of(c).describe(config_of(c))) for c in CASES}) == len(CASES)


def test_reading_and_describing_loads_no_library():
    """In a process of its own, where nothing is imported yet."""
    parts = [(*case, config_of(case).model_dump_json()) for case in CASES]
    code = f"""
import sys, importlib
for name, _, config in {parts!r}:
    module = importlib.import_module("fedray.encoders." + name)
    module.describe(module.Config.model_validate_json(config))
print([m for m in ("torch", "torchvision", "PIL", "open_clip", "transformers", "pandas") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@EACH
def test_the_configuration_survives_yaml(case):
    whole = make_config({"encoders": {case[1]: config_of(case)}})
    assert make_config(yaml.safe_load(to_yaml(whole))) == whole


@EACH
def test_one_finite_float32_row_an_item(case):
    table = embedded(case)
    assert table.shape == (N, made(case).dim)
    assert table.dtype == np.float32
    assert np.isfinite(table).all()
    assert len(np.unique(table.round(5), axis=0)) > N // 2  # items are told apart
    assert made(case).embed([]).shape == (0, made(case).dim)


@EACH
@pytest.mark.parametrize("size", [1, 7])
def test_the_batch_does_not_matter(case, size):
    items = [made(case).prepare(raw) for raw in raws(case)]
    parts = [made(case).embed(items[i : i + size]) for i in range(0, N, size)]
    assert np.abs(np.concatenate(parts) - embedded(case)).max() < 1e-5


@EACH
def test_the_order_does_not_matter(case):
    order = np.random.default_rng(1).permutation(N)
    items = [made(case).prepare(raws(case)[i]) for i in order]
    assert np.abs(made(case).embed(items) - embedded(case)[order]).max() < 1e-5


@EACH
def test_the_same_configuration_gives_the_same_bits(case):
    again = make(case)
    assert np.array_equal(again.embed([again.prepare(raw) for raw in raws(case)]), embedded(case))


@EACH
def test_what_is_broken_is_a_problem(case):
    for raw, kinds in broken(case).items():
        found = made(case).prepare(raw)
        assert isinstance(found, Problem), raw[:50]
        assert found.kind in kinds
        assert isinstance(found.detail, str)


@EACH
def test_eight_threads_prepare_the_same(case):
    items = [*raws(case), *broken(case)] * 3
    alone = [made(case).prepare(raw) for raw in items]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(made(case).prepare, items))
    assert all(type(a) is type(b) for a, b in zip(alone, together, strict=True))
    assert [p for p in alone if isinstance(p, Problem)] == [p for p in together if isinstance(p, Problem)]
    good = [[p for p in found if not isinstance(p, Problem)] for found in (alone, together)]
    assert np.array_equal(*(made(case).embed(found) for found in good))
