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


def test_the_widest_table_fits_eighty_columns():
    names = ("random", "popularity", "constant", "local_only", "ease")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(end_table(RUN, dict.fromkeys(names, RUN), title="clean"))
    text = console.export_text()
    assert "…" not in text
    for word in ("this run", "local-only", "EASE", "sampled99_ndcg_at_10", "0.3333", "clean"):
        assert word in text
