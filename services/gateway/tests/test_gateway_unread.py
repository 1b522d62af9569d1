"""What waits for callers who do not keep up is bounded: those who have been behind for longest go."""

from signalbox.gateway.api.unread import CLOSED, Unread


class Caller:
    def __init__(self) -> None:
        self.cut = 0

    def cut_off(self) -> None:
        self.cut += 1


def closed() -> float:
    return next(s.value for m in CLOSED.collect() for s in m.samples if s.name.endswith("_total"))


def test_who_has_been_behind_for_longest_goes_until_the_rest_fits() -> None:
    unread, before = Unread(100), closed()
    first, second, third, fourth = (Caller() for _ in range(4))
    unread.fell_behind(first, 40)
    unread.fell_behind(second, 40)
    unread.caught_up(first)
    unread.fell_behind(first, 50)    # again: it is the last in the row now
    assert unread.held == 90
    unread.fell_behind(third, 20)
    assert [c.cut for c in (first, second, third)] == [0, 1, 0]
    unread.fell_behind(fourth, 90)
    assert [c.cut for c in (first, second, third, fourth)] == [1, 1, 1, 0]
    assert (unread.held, closed() - before) == (90, 3)


def test_one_that_is_too_much_by_itself_goes_and_leaves_nothing() -> None:
    unread, alone = Unread(100), Caller()
    unread.fell_behind(alone, 101)
    assert (alone.cut, unread.held) == (1, 0)
    unread.caught_up(alone)    # its connection is lost
    assert unread.held == 0


def test_a_caller_that_falls_behind_twice_counts_once() -> None:
    unread, caller = Unread(100), Caller()
    unread.fell_behind(caller, 60)
    unread.fell_behind(caller, 70)
    assert (unread.held, caller.cut) == (70, 0)
