"""When an operator that was superseded may take over again: only from one that is silent."""

from signalbox.operator.domain.succession import RENEW_EVERY_S, SILENT_AFTER_S, Silence


def test_one_that_renews_is_never_silent() -> None:
    silence = Silence()
    assert not any(silence.look(str(turn), turn * RENEW_EVERY_S) for turn in range(100))


def test_silence_counts_from_when_the_last_renewal_was_seen() -> None:
    silence = Silence()
    assert not silence.look("7", 100.0)
    assert not silence.look("7", 100.0 + SILENT_AFTER_S - 1)
    assert silence.look("7", 100.0 + SILENT_AFTER_S)
    assert not silence.look("8", 200.0)


def test_a_lease_that_is_gone_is_nobodys() -> None:
    assert Silence().look("", 0.0)


def test_time_without_the_api_server_does_not_count() -> None:
    silence = Silence()
    assert not silence.look("7", 0.0)
    silence.lost()
    assert not silence.look("7", 10 * SILENT_AFTER_S)
    assert silence.look("7", 11 * SILENT_AFTER_S)
