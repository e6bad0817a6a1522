"""What is remembered of items that an encoder could not take."""

from fedray.embeddings.refusals import FILE, add_refusals, read_refusals
from fedray.encoders import Problem

A, B, C, D = (bytes([n]) * 32 for n in range(4))


def test_what_follows_from_the_bytes_is_remembered_and_nothing_else(tmp_path):
    problems = {A: Problem("truncated", "ends early"), B: Problem("encoder_died"), C: Problem("no_image")}
    add_refusals(tmp_path, problems, 100)
    assert read_refusals(tmp_path, 100) == {A: problems[A]}


def test_a_size_limit_is_part_of_the_refusal(tmp_path):
    add_refusals(tmp_path, {A: Problem("too_large", "10 x 20"), B: Problem("not_an_image")}, 100)
    assert set(read_refusals(tmp_path, 100)) == {A, B}
    assert set(read_refusals(tmp_path, 500)) == {B}


def test_a_torn_or_foreign_line_is_passed_over(tmp_path):
    add_refusals(tmp_path, {A: Problem("truncated")}, 100)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"key": "00", "kind": "no such"}\n[1]\n\xff\n{"key": "0a')
    add_refusals(tmp_path, {B: Problem("truncated")}, 100)
    assert A in read_refusals(tmp_path, 100)


def test_without_a_file_there_is_nothing(tmp_path):
    assert read_refusals(tmp_path, 100) == {}
