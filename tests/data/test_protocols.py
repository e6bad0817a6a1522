"""What each protocol says, and what an option laid over one does to its rules, its name and its note."""

from dataclasses import fields

import pytest

from fedray.config import make_config
from fedray.data.protocols import PROTOCOLS, Protocol, rules_of
from fedray.errors import OutOfRangeError, UnknownKeyError, UnknownNameError, UnsupportedError, WrongTypeError
from fedray.sections import EvaluationOptions

NOT_OPTIONS = {"name", "note", "test"}  # the last is evaluation.test


def rules(protocol="clean", test="protocol", **options):
    config = {"evaluation": {"protocol": protocol, "test": test, "options": options}}
    return rules_of(make_config(config).evaluation)


def differs(protocol):
    """The rules in which a protocol is not clean."""
    plain = PROTOCOLS["clean"]
    names = [f.name for f in fields(Protocol) if f.name not in ("name", "note")]
    return {n: v for n in names if (v := getattr(PROTOCOLS[protocol], n)) != getattr(plain, n)}


def test_the_rules_of_clean():
    assert PROTOCOLS["clean"] == Protocol(
        name="clean",
        note=PROTOCOLS["clean"].note,
        rankings=("full", "sampled99"),
        share_candidates=False,
        negatives="uniform_resampled",
        negatives_spare="train",
        ties="pessimistic",
        mask_item0=False,
        permute_items=True,
        scored_table="own",
        select_on=("ndcg_at_10",),
        select_split="valid",
        select_ties="first",
        test="selected",
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "paper/pfedrec",
            {"rankings": ("sampled99",), "select_on": ("hr_at_10",), "select_ties": "last", "test": "every_round"},
        ),
        (
            "paper/fedrap",
            {
                "rankings": ("sampled99",),
                "share_candidates": True,
                "scored_table": "aggregated",
                "select_on": ("hr_at_10",),
                "select_split": "test",
                "select_ties": "last",
                "test": "every_round",
            },
        ),
        (
            "paper/gfmfr",
            {
                "rankings": ("full_minus_all",),
                "negatives": "fixed_lowest",
                "scored_table": "aggregated",
                "select_on": ("hr_at_50", "ndcg_at_50"),
                "test": "every_round",
            },
        ),
    ],
)
def test_the_rules_of_papers_whose_negatives_spare_held_out_items(name, expected):
    assert differs(name) == {"negatives_spare": "all", "permute_items": False, **expected}
    assert "leaks them" in PROTOCOLS[name].note


def test_the_rules_of_fedvlr():
    rankings = ("full_minus_train",)
    assert differs("paper/fedvlr") == {
        "rankings": rankings, "ties": "index", "permute_items": False, "scored_table": "aggregated",
        "select_on": ("hr_at_50",),
    }  # fmt: skip


def test_what_is_not_held_out_is_said_loudly():
    assert "CHOSEN BY ITS TEST" in PROTOCOLS["paper/fedrap"].note
    assert [n for n, p in PROTOCOLS.items() if p.select_split == "test"] == ["paper/fedrap"]


def test_every_rule_is_an_option_and_every_option_a_rule():
    assert set(EvaluationOptions.model_fields) == {f.name for f in fields(Protocol)} - NOT_OPTIONS


@pytest.mark.parametrize("name", PROTOCOLS)
def test_options_that_say_what_the_protocol_says_change_nothing(name):
    own = {n: getattr(PROTOCOLS[name], n) for n in EvaluationOptions.model_fields}
    assert rules(name) is rules(name, **own) is PROTOCOLS[name]


def test_an_option_changes_its_rule_and_stands_in_name_and_note():
    found = rules(ties="index")
    assert (found.ties, found.name) == ("index", "clean + ties=index")
    assert found.note == f"{PROTOCOLS['clean'].note}; BUT ties=index (instead of ties=pessimistic)"
    assert differs("clean") == {}  # the protocol itself stays as it is
    more = rules("paper/fedvlr", select_on=["hr_at_10", "mrr_at_5"], mask_item0=True, permute_items=False)
    assert more.name == "paper/fedvlr + mask_item0=true, select_on=hr_at_10,mrr_at_5"
    assert more.lead == "hr_at_10" and more.mask_item0


def test_one_word_stands_for_a_list_of_one():
    assert rules(select_on="hr_at_5", rankings="sampled99").select_on == ("hr_at_5",)
    assert rules(rankings="sampled99").rankings == ("sampled99",)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"tie": "index"}, UnknownKeyError, r"'evaluation\.options\.tie'.*Did you mean 'ties'"),
        ({"permute_item_ids": True}, UnknownKeyError, "Did you mean 'permute_items'"),
        ({"ties": "indx"}, OutOfRangeError, r"evaluation\.options\.ties is 'indx'; expected 'pessimistic', 'index'"),
        ({"ties": True}, WrongTypeError, r"evaluation\.options\.ties is true"),
        ({"mask_item0": "maybe"}, WrongTypeError, r"evaluation\.options\.mask_item0 is 'maybe'"),
        ({"select_on": "hr@10"}, OutOfRangeError, r"evaluation\.options\.select_on"),
        ({"select_on": ["hr_at_5", "hr_at_5"]}, OutOfRangeError, "each name once"),
        ({"rankings": []}, OutOfRangeError, "at least 1"),
    ],
)
def test_a_wrong_option_is_named(options, error, says):
    with pytest.raises(error, match=says):
        rules(**options)


def test_a_protocol_that_does_not_exist_is_named():
    with pytest.raises(UnknownNameError, match="paper/gfmfr"):
        rules("paper/gfmf")


def test_a_test_set_that_selects_is_scored_every_round():
    assert rules(select_split="test").name == "clean + select_split=test"
    with pytest.raises(UnsupportedError, match="select_split: valid"):
        rules(select_split="test", test="selected")
    with pytest.raises(UnsupportedError, match="paper/fedrap"):
        rules("paper/fedrap", test="selected")
    assert rules("paper/fedrap", "selected", select_split="valid").select_split == "valid"


def test_an_option_changes_the_fingerprint_and_null_does_not():
    def fingerprint(**options):
        return make_config({"evaluation": {"options": options}}).fingerprint()

    assert fingerprint(ties="index") != fingerprint() == fingerprint(ties=None, select_on=None)


def test_the_metrics_there_are():
    clean = PROTOCOLS["clean"].metrics((10, 100))
    assert clean[:2] == ["hr_at_10", "hr_at_100"] and "sampled99_ndcg_at_10" in clean
    assert "sampled99_hr_at_100" not in clean and "ndcg_at_100" in clean
    assert PROTOCOLS["paper/fedrap"].metrics((10, 100)) == [f"{k}_at_10" for k in ("hr", "recall", "ndcg", "mrr")]
