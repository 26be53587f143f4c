"""Members by locked files, and how they share the partitions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stepfold.drivers._members import Roll, assign


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "members"


def test_members_see_each_other_until_they_leave(place: Path) -> None:
    one, two = Roll(place), Roll(place)
    one.enter("a", "worker a")
    two.enter("b", "worker b")
    two.enter("c", "worker c")
    assert one.sharing() == two.sharing() == ["a", "b", "c"]
    two.leave("b")
    two.leave("b")
    assert one.sharing() == two.sharing() == ["a", "c"]
    two.close()
    assert one.sharing() == ["a"]
    one.close()
    assert not place.exists(), "the last one takes the directory away"


def test_who_has_retired_is_live_and_has_no_share(place: Path) -> None:
    one, two = Roll(place), Roll(place)
    one.enter("a", "worker a")
    two.enter("b", "worker b")
    one.retire("a")
    one.retire("a")
    one.retire("nobody")
    for roll in one, two:
        assert roll.sharing() == ["b"]
        assert roll.is_live("worker a") and roll.is_live("worker b") and not roll.is_live("worker")
    shutil.rmtree(place)
    for roll in one, two:
        assert roll.sharing() in ([], ["b"])
    assert two.is_live("worker a"), "its file is there again"
    assert one.sharing() == two.sharing() == ["b"], "and still says that it has retired"
    one.leave("a")
    assert not two.is_live("worker a")
    two.close()


def test_files_of_the_dead_are_removed(place: Path) -> None:
    place.mkdir()
    (place / "dead").touch()
    (place / "directory").mkdir()
    roll = Roll(place)
    roll.enter("a", "worker a")
    assert roll.sharing() == ["a"]
    assert sorted(path.name for path in place.iterdir()) == ["a", "directory"]
    roll.close()


def test_a_member_whose_file_was_removed_enters_again(place: Path) -> None:
    one, two = Roll(place), Roll(place)
    one.enter("a", "worker a")
    shutil.rmtree(place)
    assert two.sharing() == []
    assert one.sharing() == ["a"]
    assert two.sharing() == ["a"]
    one.close()
    two.close()


def test_shares_are_complete_disjoint_and_even() -> None:
    for partitions in (1, 2, 3, 4, 7, 32):
        for count in range(1, 10):
            shares = assign([f"member-{number}" for number in range(count)], partitions)
            assert sorted(partition for share in shares.values() for partition in share) == list(range(partitions))
            sizes = [len(share) for share in shares.values()]
            assert len(sizes) == count and max(sizes) - min(sizes) <= 1
    assert assign([], 4) == {}


def test_shares_do_not_depend_on_the_order_of_members() -> None:
    members = [f"member-{number}" for number in range(5)]
    assert assign(members, 16) == assign(members[::-1], 16)


def test_who_comes_moves_little() -> None:
    kept = total = 0
    for seed in range(20):
        members = [f"{seed}-{number}" for number in range(4)]
        before, after = assign(members[:3], 32), assign(members, 32)
        kept += sum(len(before[member] & after[member]) for member in members[:3])
        total += 24  # what three members keep if nothing moves that need not
    assert kept > 0.8 * total
