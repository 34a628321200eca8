"""A document's split depends on its own path and id alone, and official evaluation splits stay as they are."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prosemill.corpus.splits import SplitRule, official_split
from prosemill.workspace import SPLITS

OFFICIAL = st.sampled_from([None, *SPLITS])
EVALUATION = ("validation", "test")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/a.txt", "train"),
        ("deep/Test/a.txt", "test"),
        ("valid/a.txt", "validation"),
        ("val.jsonl", "validation"),
        ("dev.txt", "validation"),
        ("a/validation.parquet", "validation"),
        ("wiki.train.tokens", "train"),
        ("wiki.valid.tokens", "validation"),
        ("wiki.test.raw", "test"),
        ("train.en.txt", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001-80760c25d1e3b8ab.parquet", "validation"),
        ("test-00000-of-00001.parquet", "test"),
        ("train/test.txt", "train"),
        ("test/train/a.txt", "test"),
        ("a.txt", None),
        ("testing.txt", None),
        ("the test of time.txt", None),
        ("latest.txt", None),
        ("trains/a.txt", None),
        ("retrain-00000-of-00001.parquet", None),
        ("contest/a.test", None),
        ("test", "test"),
    ],
)
def test_paths_name_splits(path: str, split: str | None) -> None:
    assert official_split(PurePosixPath(path)) == split


@given(document_id=st.text(), given_split=OFFICIAL, official=st.frozensets(st.sampled_from(SPLITS)))
def test_official_evaluation_splits_stay_and_are_never_filled_up(
    document_id: str, given_split: str | None, official: frozenset[str]
) -> None:
    official |= {given_split} if given_split else set()
    rule = SplitRule(validation_share=0.3, test_share=0.3, official=official)
    split = rule.assign(document_id, given_split)
    if given_split in EVALUATION:
        assert split == given_split
    else:
        assert split == "train" or split not in official


@given(document_id=st.text())
def test_what_has_no_split_and_what_is_official_train_are_carved_alike(document_id: str) -> None:
    carved = SplitRule(validation_share=0.3, test_share=0.3, official=frozenset())
    from_train = SplitRule(validation_share=0.3, test_share=0.3, official=frozenset({"train"}))
    assert carved.assign(document_id, None) == from_train.assign(document_id, "train")


@given(document_id=st.text(), share=st.floats(0, 0.4))
def test_a_larger_share_takes_from_train_alone(document_id: str, share: float) -> None:
    small = SplitRule(validation_share=0.1, test_share=0.1, official=frozenset()).assign(document_id, None)
    large = SplitRule(validation_share=0.1 + share, test_share=0.1, official=frozenset()).assign(document_id, None)
    assert large == small or (small, large) == ("train", "validation")


def test_shares_of_zero_leave_everything_to_training() -> None:
    rule = SplitRule(validation_share=0.0, test_share=0.0, official=frozenset())
    assert {rule.assign(str(number), None) for number in range(1000)} == {"train"}
