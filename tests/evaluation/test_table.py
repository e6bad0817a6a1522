import io

from rich.console import Console

from fedray.evaluation.table import end_markdown, end_table, split_of

RUN = {
    "sampled99_ndcg_at_10": 0.33333,
    "sampled99_hr_at_10": 0.5,
    "ndcg_at_10": 0.06251,
    "hr_at_10": 0.125,
    "hr_at_5": 0.0625,
    "recall_at_10": 0.125,
    "score_std": 1.25,
}
CONTROLS = {
    "ease": {"valid": {}, "test": {"hr_at_10": 0.2, "ndcg_at_10": 0.1, "hr_at_5": 0.15}},
    "random": {"valid": {}, "test": {"hr_at_10": 0.01, "ndcg_at_10": 0.004, "hr_at_5": 0.005}},
}


def test_markdown_by_hand():
    text = end_markdown(RUN, split_of(CONTROLS, "test"))
    assert text.splitlines() == [
        "| test | this run | random | EASE |",
        "| --- | ---: | ---: | ---: |",
        "| hr_at_5 | 0.0625 | 0.0050 | 0.1500 |",
        "| hr_at_10 | 0.1250 | 0.0100 | 0.2000 |",
        "| ndcg_at_10 | 0.0625 | 0.0040 | 0.1000 |",
        "| sampled99_hr_at_10 | 0.5000 | - | - |",
        "| sampled99_ndcg_at_10 | 0.3333 | - | - |",
    ]


def test_chosen_rows_and_columns():
    text = end_markdown(RUN, {"local_only": RUN, "popularity": RUN}, ks=[10], kinds=["recall"])
    assert text.splitlines()[0] == "| test | this run | popularity | local-only |"
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| recall_at_10"]


def printed(names, width=80):
    """Lines of the table with these controls."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(end_table(RUN, dict.fromkeys(names, RUN), title="clean"))
    return console.export_text()


def test_content_stands_after_the_constant_score():
    text = end_markdown(RUN, dict.fromkeys(["ease", "content_image", "popularity", "content_my_text", "constant"], RUN))
    header = "| test | this run | popularity | constant | content image | content my_text | EASE |"
    assert text.splitlines()[0] == header


def test_the_widest_table_without_content_fits_eighty_columns():
    text = printed(("random", "popularity", "constant", "local_only", "ease"))
    assert "…" not in text
    for word in ("this run", "local-only", "EASE", "sampled99_ndcg_at_10", "0.3333", "clean"):
        assert word in text


NAMES = ("random", "popularity", "constant", "content_image", "content_text", "local_only", "ease")


def test_two_features_fit_eighty_columns():
    text = printed(NAMES)
    above, below = text.splitlines()[1:3]
    assert "…" not in text and text.splitlines()[-1].split() == ["sampled99_ndcg_at_10", *["0.3333"] * 8]
    assert above.split() == ["this", "popu-", "con-", "content", "content", "local-"]
    assert below.split() == ["test", "run", "random", "larity", "stant", "image", "text", "only", "EASE"]


def test_where_there_is_room_words_stay_whole():
    text = printed(NAMES, 120)
    above, below = text.splitlines()[1:3]
    assert above.split() == ["content", "content"] and max(map(len, text.splitlines())) <= 100
    names = ["test", "this", "run", "random", "popularity", "constant", "image", "text", "local-only", "EASE"]
    assert below.split() == names and text.splitlines()[-1].split()[1:] == ["0.3333"] * 8


def test_five_features_fit_120_columns_and_long_names_are_cut():
    text = printed((*NAMES, "content_plot_vectors", "content_sound", "content_film"), 120)
    assert "…" not in text and "plot_vectors" in text and text.count("content") == 5
    assert "a_feature_o…" in printed((*NAMES[:3], "content_a_feature_of_many_words"))
