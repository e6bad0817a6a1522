"""`fedray encode` as a user meets it: a catalogue with everything wrong that can be wrong, and what comes after."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fedray import cli

JOB = """
name: broken
data: {source: folder, path: %s}
encoders: {image: {name: hashing}, text: {name: hashing}}
runtime: {executor: serial}
tracking: {backend: none}
"""


def run(args):
    """The exit code, however the command line leaves."""
    try:
        return cli.run(args)
    except SystemExit as end:
        return end.code


def picture(kind="JPEG", size=(40, 60), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def bomb(width=30_000, height=30_000):
    """A PNG of a few hundred bytes that says it is 900 million pixels."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


IMAGES = {
    1: (picture()[:400], "truncated"),
    2: (b"", "empty_file"),
    3: (b"<html>404 not found</html>", "not_an_image"),
    4: (bomb(), "too_large"),
    5: (None, "unreadable"),  # a folder of that name
    6: ("absent", "no_image"),
}
TEXTS = {
    7: ("", "empty_text"),
    8: (None, "no_text"),
    9: ({"en": "a title"}, "wrong_type"),
    10: ("caf\\ud83d", "not_utf8"),  # half a character, escaped
    11: (b"caf\xe9", "not_utf8"),  # Latin-1 bytes
    12: ("...", "empty_text"),  # nothing that the encoder could read
}


@pytest.fixture
def catalogue(tmp_path):
    """Items 1 to 20; 1 to 6 have a broken picture, 7 to 12 a broken title."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for item in range(1, 21):
        body = IMAGES.get(item, (picture(seed=item), ""))[0]
        file = folder / "images" / f"{item}.jpg"
        if body is None:
            file.mkdir()
        elif body != "absent":
            file.write_bytes(body)
    lines = []
    for item in range(1, 21):
        title = TEXTS.get(item, (f"title of {item}", ""))[0]
        raw = title if isinstance(title, bytes) else None
        text = json.dumps({"item": item, "title": "RAW" if raw else title}).replace("\\\\u", "\\u").encode()
        lines.append(text.replace(b"RAW", raw or b"RAW"))
    (folder / "items.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    rows = [f"{user},{item},{item}" for user in range(8) for item in range(1, 21) if (user + item) % 3]
    (folder / "interactions.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    (tmp_path / "job.yaml").write_text(JOB % folder)
    return tmp_path


@pytest.fixture
def here(catalogue, monkeypatch):
    monkeypatch.chdir(catalogue)
    return catalogue


def features(file):
    return json.loads(file.read_text())["features"]


def test_twelve_kinds_of_broken_items_are_named_and_the_others_are_encoded(here, capsys):
    assert run(["encode", "job.yaml", "--summary", "end.json"]) == 0
    found = features(here / "end.json")
    for feature, broken in (("image", IMAGES), ("text", TEXTS)):
        named = {int(p["item"]): kind for kind, items in found[feature]["problems"].items() for p in items}
        assert named == {item: kind for item, (_, kind) in broken.items()}
        assert found[feature]["present"] == 14
        assert found[feature]["encoded"] == 14
    shown = capsys.readouterr().out
    for kind in {kind for broken in (IMAGES, TEXTS) for _, kind in broken.values()}:
        assert kind in shown
    assert "28 items encoded" in shown


def test_a_second_run_encodes_nothing_and_still_names_them(here, capsys):
    run(["encode", "job.yaml"])
    capsys.readouterr()
    assert run(["encode", "job.yaml", "--summary", "end.json"]) == 0
    shown = capsys.readouterr().out
    assert "\n0 items encoded\n" in shown and "truncated" in shown and "too_large" in shown
    assert {f["hit_rate"] for f in features(here / "end.json").values()} == {1.0}


def test_verify_and_gc(here, capsys):
    run(["encode", "job.yaml"])
    assert run(["encode", "job.yaml", "--verify"]) == 0
    segment = next((here / ".fedray/embeddings").glob("*/segments/*.safetensors"))
    body = bytearray(segment.read_bytes())
    body[-3] ^= 1
    segment.write_bytes(body)
    assert run(["encode", "job.yaml", "--verify"]) == 1
    assert segment.name in capsys.readouterr().out
    items = here / "data/items.jsonl"
    items.write_bytes(items.read_bytes().replace(b"title of 20", b"another"))
    assert run(["encode", "job.yaml", "--summary", "end.json"]) == 0
    assert features(here / "end.json")["text"]["encoded"] in (1, 2)  # the new title, and the damaged row if a text
    assert run(["encode", "job.yaml", "--gc"]) == 0
    assert "28" in capsys.readouterr().out
    assert run(["encode", "job.yaml", "--summary", "again.json"]) == 0
    assert {f["encoded"] for f in features(here / "again.json").values()} == {0}


@pytest.mark.parametrize(("policy", "code"), [("mask", 0), ("mean", 0), ("error", 2)])
def test_what_data_missing_makes_of_them(here, capsys, policy, code):
    found = run(["train", "job.yaml", "--set", f"data.missing={policy}", "--set", "train.rounds=1"])
    assert found == code
    if code:
        assert "6 without image (ids 1, 2, 3, 4, 5, 6)" in " ".join(capsys.readouterr().err.split())


def test_a_training_run_takes_its_features_from_the_same_store(here, capsys):
    run(["encode", "job.yaml"])
    capsys.readouterr()
    assert run(["train", "job.yaml", "--set", "train.rounds=1"]) == 0
    assert "14 of 20 items; 0 items encoded" in capsys.readouterr().out


def test_a_dry_run_encodes_nothing(here, capsys):
    assert run(["train", "job.yaml", "--dry-run"]) == 2
    assert "a dry run starts nothing" in capsys.readouterr().err
    run(["encode", "job.yaml"])
    assert run(["train", "job.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("encoders.text.fields=[titel]", "no column 'titel'.*Did you mean 'title'"),
        ("encoders.text.name=hashin", "Did you mean 'hashing'"),
        ("encoders.text.prompt=film", "exactly one {}"),
        ("encoders.poster.name=hashing", "key 'encoders.poster.input' is missing"),
        ("encoders.text.dimm=3", "Did you mean 'dim'"),
        ("encoders=3", "a mapping"),
        ("encoding.device=cuda", "no GPU"),
    ],
)
def test_wrong_settings_are_named(here, capsys, setting, message):
    import re

    assert run(["encode", "job.yaml", "--set", setting]) in (2, 3)
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_job_without_encoders_says_what_to_write(here, capsys):
    assert run(["encode", "job.yaml", "--set", "encoders={}"]) == 2
    assert "key 'encoders' is missing" in capsys.readouterr().err


def test_a_feature_that_no_item_has_is_refused(here, capsys):
    for file in (here / "data/images").iterdir():
        file.rmdir() if file.is_dir() else file.write_bytes(b"no picture")
    assert run(["encode", "job.yaml"]) == 2
    assert "no item has image" in capsys.readouterr().err
