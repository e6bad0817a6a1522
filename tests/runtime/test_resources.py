"""What a container lets this process have."""

import psutil
import pytest

from fedray.runtime import session

GIB = 2**30


@pytest.mark.parametrize(
    ("stat", "free"),
    [
        (f"anon 5\ninactive_file {6 * GIB}\nactive_file {GIB // 2}\n", 7 * GIB),
        ("anon 5\n", GIB),
        (None, GIB),
    ],
    ids=["pages of files that may go", "none", "not said"],
)
def test_pages_of_files_that_were_read_are_free_memory(monkeypatch, tmp_path, stat, free):
    (tmp_path / "memory.max").write_text(f"{8 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{7 * GIB}\n")
    if stat is not None:
        (tmp_path / "memory.stat").write_text(stat)
    monkeypatch.setattr(session, "CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 64 * GIB}))
    assert session.local_resources().memory_bytes == free
