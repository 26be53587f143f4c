"""How a group's leader shares partitions out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stepfold.drivers.kafka.group import share

MEMBERS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.sets(st.integers(0, 40)), min_size=1, max_size=8)


def test_the_first_member_gets_everything() -> None:
    assert share(3, {"a": []}) == {"a": [0, 1, 2]}


def test_without_members_nobody_gets_anything() -> None:
    assert share(3, {}) == {}


def test_everybody_keeps_what_they_may() -> None:
    assert share(4, {"old": [0, 1, 2, 3], "new": []}) == {"old": [0, 1], "new": [2, 3]}
    assert share(5, {"a": [3, 4], "b": [0, 1, 2]}) == {"a": [3, 4], "b": [0, 1, 2]}
    assert share(4, {"a": [2], "b": [0], "c": [3]}) == {"a": [1, 2], "b": [0], "c": [3]}


def test_more_members_than_partitions() -> None:
    assert share(1, {"a": [], "b": [0], "c": []}) == {"a": [], "b": [0], "c": []}


@given(st.integers(1, 40), MEMBERS)
def test_every_partition_has_one_owner_and_nobody_two_more_than_another(partitions: int, members: dict[str, set[int]]) -> None:
    shares = share(partitions, members)
    assert shares.keys() == members.keys()
    assert sorted(partition for given_to in shares.values() for partition in given_to) == list(range(partitions))
    sizes = [len(given_to) for given_to in shares.values()]
    assert max(sizes) - min(sizes) <= 1
    assert shares == share(partitions, members), "every leader would decide the same"


@given(st.integers(1, 40), MEMBERS)
def test_a_share_is_stable(partitions: int, members: dict[str, set[int]]) -> None:
    shares = share(partitions, members)
    assert share(partitions, shares) == shares


@given(st.integers(1, 40), MEMBERS)
def test_who_leaves_disturbs_nobody(partitions: int, members: dict[str, set[int]]) -> None:
    before = share(partitions, members)
    stay = dict(list(before.items())[1:])
    if stay:
        after = share(partitions, stay)
        assert all(set(before[member]) <= set(after[member]) for member in stay)
