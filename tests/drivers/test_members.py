"""Members by locked files, and how they share the partitions."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from stepfold.drivers.sqlite.members import Roll, assign


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


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("of", "call"), [(os, "mkdir"), (os, "open"), (Path, "iterdir")], ids=["mkdir", "open", "iterdir"])
def test_the_last_member_may_leave_at_any_moment_while_another_enters(
    place: Path, monkeypatch: pytest.MonkeyPatch, of: object, call: str, before: bool
) -> None:
    last, other = Roll(place), Roll(place)
    last.enter("a", "worker a")
    asks = getattr(of, call)

    def leaves(*arguments: object, **options: object) -> object:
        monkeypatch.undo()
        if before:
            last.leave("a")
        try:
            return asks(*arguments, **options)
        finally:
            last.leave("a")

    monkeypatch.setattr(of, call, leaves)
    if call == "iterdir":
        assert other.sharing() == []
    other.enter("b", "worker b")
    assert getattr(of, call) is asks, "the last one has left"
    assert other.sharing() == last.sharing() == ["b"]
    other.close()
    assert not place.exists()


def test_a_place_that_can_be_no_directory(place: Path) -> None:
    roll = Roll(place)
    place.symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        roll.enter("a", "worker a")
    place.unlink()
    place.touch()
    with pytest.raises(NotADirectoryError):
        roll.enter("a", "worker a")
    place.unlink()
    assert roll.sharing() == []


def test_who_could_not_write_its_name_is_no_member(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    one, two = Roll(place), Roll(place)
    monkeypatch.setattr(os, "write", is_full)
    with pytest.raises(OSError, match="No space left"):
        one.enter("a", "worker a")
    monkeypatch.undo()
    assert two.sharing() == []


def test_who_cannot_remove_its_file_is_no_member(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def may_not(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    one, two = Roll(place), Roll(place)
    one.enter("a", "worker a")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", may_not)
        one.close()
    assert [path.name for path in place.iterdir()] == ["a"]
    assert two.sharing() == []


def test_a_member_without_a_place_closes_no_file_of_others(place: Path, tmp_path: Path) -> None:
    roll = Roll(place / "members")
    place.mkdir()
    roll.enter("a", "worker a")
    shutil.rmtree(place)
    for number in range(3):
        with pytest.raises(FileNotFoundError):
            roll.sharing()
        with (tmp_path / str(number)).open("w") as of_others:  # closing one that is closed already fails
            with pytest.raises(FileNotFoundError):
                roll.sharing()
            of_others.write("still open")
    place.mkdir()
    assert roll.sharing() == ["a"]
    roll.close()


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
