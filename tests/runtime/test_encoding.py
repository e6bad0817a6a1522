"""Encoder actors on Ray: the numbers of one process, whoever dies; and two jobs at one store."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedray.config import make_config, to_yaml
from fedray.data.dataset import load
from fedray.data.protocols import rules_of
from fedray.embeddings import collect
from fedray.embeddings.host import EncoderHost
from fedray.embeddings.store import EmbeddingStore
from fedray.encoders import hashing
from fedray.errors import PlacementError, WeightsError
from fedray.runtime.encoding import most_actors, pick_device, pools
from fedray.runtime.features import with_features
from fedray.runtime.plan import Resources
from fedray.runtime.serving import serve
from tests.encoders import models

SLOW_TEXTS = 200


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A model slow enough to be killed in the middle: some 100 texts a second."""
    t = models._transformers()
    tokenizer, size = models._tokenizer(t)
    shape = {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 1024}
    config = t.BertConfig(vocab_size=size, max_position_embeddings=32, **shape)
    return models._save(tmp_path_factory.mktemp("models") / "bert", t.BertModel(config), tokenizer)


def config_of(store, executor="serial", encoders=None, items=60, **encoding):
    data = {"source": "synthetic", "users": 30, "items": items, "interactions": 12}
    return make_config(
        {
            "name": "enc",
            "data": data,
            "encoders": encoders or {"text": {"name": "hashing"}, "image": {"name": "hashing"}},
            "encoding": {"store": str(store), "batch_size": 8, **encoding},
            "runtime": {"executor": executor},
            "tracking": {"backend": "none"},
        }
    )


def encoded(config, tell=lambda feature, step: None):
    dataset, reports = with_features(config, load(config.data, rules_of(config.evaluation)), tell)
    return dataset.features, {r.feature: r for r in reports}


def rows_of(store_root):
    """How often each key is in the store's segments, whole."""
    health = collect.verify(Path(store_root))
    assert health.whole
    return sum(health.rows.values()), health.duplicates


@pytest.mark.ray
@pytest.mark.slow
def test_the_features_of_a_serial_run_and_of_ray_with_one_and_three_actors_are_equal(tmp_path, bert, ray_cluster):
    encoders = {**slow(bert), "image": {"name": "hashing"}}
    serial, _ = encoded(config_of(tmp_path / "s", encoders=encoders, items=SLOW_TEXTS))
    one, _ = encoded(config_of(tmp_path / "1", "ray", encoders, SLOW_TEXTS, max_actors=1))
    three = config_of(tmp_path / "3", "ray", encoders, SLOW_TEXTS, min_actors=3, max_actors=3, cpus_per_actor=0.5)
    three, _ = encoded(three)
    for name in ("text", "image"):
        np.testing.assert_array_equal(serial.tables[name], one.tables[name])
        np.testing.assert_array_equal(serial.tables[name], three.tables[name])
    assert serial.fingerprint == three.fingerprint


@pytest.mark.ray
def test_three_actors_at_work_give_the_bits_of_one_process(bert, ray_cluster):
    """All three are up before the first batch that counts."""
    texts = [f"story number {n} of the old sea" for n in range(96)]
    batches = [texts[i : i + 8] for i in range(0, 96, 8)]
    config = config_of("unused", "ray", slow(bert), min_actors=3, max_actors=3, cpus_per_actor=0.5)
    host = EncoderHost(config.encoders["text"], config.encoding, "cpu")
    with pools(config, "three") as open_pool, open_pool(config.encoders["text"]) as pool:
        pool.embed(batches[0])
        deadline = time.monotonic() + 60
        while pool.stats().workers < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(set(pool.stats().pids)) == 3
        found = [asked.result(60) for asked in [pool.submit(batch) for batch in batches]]
    for batch, encoded_there in zip(batches, found):
        np.testing.assert_array_equal(encoded_there.values, host.encode(batch).values)


def test_a_second_run_encodes_nothing_and_starts_nothing(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    first, _ = encoded(config)
    monkeypatch.setattr("fedray.runtime.session.connected", lambda *_: pytest.fail("Ray was started"))
    second, reports = encoded(
        config.model_copy(update={"runtime": config.runtime.model_copy(update={"executor": "ray"})})
    )
    assert {r.encoded for r in reports.values()} == {0}
    assert {r.hit_rate for r in reports.values()} == {1.0}
    assert first.fingerprint == second.fingerprint


def test_a_changed_item_alone_is_encoded_again(tmp_path):
    config = config_of(tmp_path)
    dataset = load(config.data, rules_of(config.evaluation))
    with_features(config, dataset)
    items = dataset.items.copy()
    items.loc[3, "title"] = "Another title"
    _, reports = with_features(config, replace(dataset, items=items))
    assert {r.feature: r.encoded for r in reports} == {"text": 1, "image": 0}


def encoder_processes():
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "EncoderActor" in " ".join(process.cmdline()) or "EncoderActor" in process.name():
                found.append(process)
        except psutil.Error:
            continue
    return found


def slow(bert):
    return {"text": {"name": "transformers", "model": str(bert)}}


@pytest.mark.ray
def test_kill_9_of_an_actor_in_mid_run_loses_nothing_and_is_counted(tmp_path, bert, ray_cluster):
    calm, _ = encoded(config_of(tmp_path / "calm", encoders=slow(bert), items=SLOW_TEXTS))
    killed = []

    def kill(feature, step):
        if step.encoded >= 24 and not killed:
            victim = encoder_processes()[0]
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    config = config_of(tmp_path / "kill", "ray", slow(bert), SLOW_TEXTS, min_actors=2, max_actors=2)
    found, reports = encoded(config, kill)
    assert killed and reports["text"].restarts == 1
    np.testing.assert_array_equal(calm.tables["text"], found.tables["text"])
    rows, twice = rows_of(tmp_path / "kill")
    assert rows == reports["text"].encoded and twice == 0


def job_file(folder, store, bert):
    file = folder / "job.yaml"
    file.write_text(to_yaml(config_of(store, encoders=slow(bert), items=SLOW_TEXTS)), encoding="utf-8")
    return file


def test_two_jobs_at_once_share_a_store_and_do_no_item_twice(tmp_path, bert):
    job = job_file(tmp_path, tmp_path / "store", bert)
    command = [sys.executable, "-m", "fedray.cli", "encode", str(job)]
    jobs = [subprocess.Popen([*command, "--summary", f"{n}.json"], cwd=tmp_path) for n in (1, 2)]
    assert [j.wait(120) for j in jobs] == [0, 0]
    each = [json.loads((tmp_path / f"{n}.json").read_text())["features"]["text"] for n in (1, 2)]
    rows, twice = rows_of(tmp_path / "store")
    assert twice == 0
    assert sum(e["encoded"] for e in each) == rows
    assert all(e["encoded"] + e["by_others"] + e["stored"] == rows for e in each)


def test_a_job_killed_in_the_middle_leaves_what_it_made_and_the_next_makes_the_rest(tmp_path, bert):
    job = job_file(tmp_path, tmp_path / "store", bert)
    command = [sys.executable, "-m", "fedray.cli", "encode", str(job)]
    process = subprocess.Popen(command, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "store").glob("*/segments/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    _, reports = encoded(config_of(tmp_path / "store", encoders=slow(bert), items=SLOW_TEXTS))
    rows, twice = rows_of(tmp_path / "store")
    assert twice == 0
    assert reports["text"].encoded + reports["text"].stored == rows
    assert reports["text"].stored > 0


def test_a_torn_segment_is_found_and_encoded_again(tmp_path):
    config = config_of(tmp_path)
    first, _ = encoded(config)
    for segment in tmp_path.glob("*/segments/*.safetensors"):
        segment.write_bytes(segment.read_bytes()[:-7])
    second, reports = encoded(config)
    assert all(r.torn == 1 and r.encoded > 0 for r in reports.values())
    assert first.fingerprint == second.fingerprint


def test_a_service_answers_ids_and_raw_content_from_many_threads(tmp_path):
    config = config_of(tmp_path)
    features, _ = encoded(config)
    dataset = load(config.data, rules_of(config.evaluation))
    ids = dataset.items["item"].tolist()
    with serve(config, "text") as service:
        np.testing.assert_array_equal(service.embed_ids(ids).values, features.tables["text"])
        new = service.embed(["a text that no item has", ""])
        assert new.problems[0] is None and new.problems[1] is not None
        answers = {}
        threads = [
            threading.Thread(target=lambda n=n: answers.update({n: service.embed([f"word number {n}"]).values}))
            for n in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(answers) == 16
        with pytest.raises(Exception, match="item 'nobody' is not in the catalogue"):
            service.embed_ids(["nobody"])
    with EmbeddingStore(tmp_path, hashing.describe(config.encoders["text"]), "float32") as store:
        assert len(store) == len(set(map(tuple, features.tables["text"].tolist()))) + 17


def test_a_model_that_does_not_load_is_an_error_of_the_job(tmp_path, bert):
    (bert.parent / "broken").mkdir(exist_ok=True)
    for file in bert.iterdir():
        (bert.parent / "broken" / file.name).write_bytes(file.read_bytes())
    (bert.parent / "broken" / "model.safetensors").write_bytes(b"no weights")
    encoders = {"text": {"name": "transformers", "model": str(bert.parent / "broken")}}
    with pytest.raises(WeightsError, match="broken"):
        encoded(config_of(tmp_path, encoders=encoders))


def test_where_actors_go():
    settings = config_of("s").encoding
    assert pick_device(settings, Resources(4.0, 0.0, 1e9)) == "cpu"
    assert pick_device(settings, Resources(4.0, 1.0, 1e9)) == "cuda"
    assert most_actors(settings, Resources(4.0, 0.0, 1e9), "cpu") == 4
    assert most_actors(settings.model_copy(update={"gpu_share": 0.5}), Resources(4.0, 1.0, 1e9), "cuda") == 2
    assert most_actors(settings.model_copy(update={"max_actors": 3}), Resources(1.0, 0.0, 1e9), "cpu") == 3
    with pytest.raises(PlacementError, match="no GPU"):
        pick_device(settings.model_copy(update={"device": "cuda"}), Resources(4.0, 0.0, 1e9))
    with pytest.raises(PlacementError, match="at most 2"):
        most_actors(settings.model_copy(update={"cpus_per_actor": 3.0}), Resources(4.0, 0.0, 1e9, (2.0, 2.0)), "cpu")
