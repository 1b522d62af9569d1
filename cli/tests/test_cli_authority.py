"""The authority between rooms: what is issued when, and that rooms which take it up late still trust one another."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from signalbox.cli.authority import AUTHORITY_LIFE, Kept, due

NAMES = ["signalbox-scheduler", "signalbox-scheduler.relay.svc"]
LIFE = timedelta(days=90)
START = datetime(2026, 11, 25, tzinfo=UTC)
DAY = timedelta(days=1)


def cert(kept: Kept) -> x509.Certificate:
    return x509.load_pem_x509_certificate(kept.cert)


def trusts(one: Kept, other: Kept, now: datetime) -> bool:
    """Whether a room with `one` in its files believes a room with `other`, as server and as client."""
    authorities = Store(x509.load_pem_x509_certificates(one.trusted))
    policy = PolicyBuilder().store(authorities).time(now)
    try:
        policy.build_server_verifier(x509.DNSName(NAMES[0])).verify(cert(other), [])
        policy.build_client_verifier().verify(cert(other), [])
    except VerificationError:
        return False
    return True


def test_at_first_everything_is_made_and_then_nothing() -> None:
    kept = due(Kept(), NAMES, LIFE, START)
    assert trusts(kept, kept, START)
    assert cert(kept).not_valid_after_utc == START + LIFE
    assert due(kept, NAMES, LIFE, START + 59 * DAY) == kept


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left() -> None:
    first = due(Kept(), NAMES, LIFE, START)
    second = due(first, NAMES, LIFE, START + 61 * DAY)
    assert second.cert != first.cert
    assert (second.authority, second.trusted) == (first.authority, first.trusted)


def test_other_names_are_a_reason_to_issue() -> None:
    first = due(Kept(), NAMES, LIFE, START)
    second = due(first, [*NAMES, "another"], LIFE, START + DAY)
    assert second.cert != first.cert
    assert due(second, [*NAMES, "another"], LIFE, START + DAY) == second


@pytest.mark.slow
def test_through_twenty_one_years_of_days_no_two_rooms_refuse_each_other() -> None:
    """Some rooms read today's files, some still yesterday's."""
    now, before = START, due(Kept(), NAMES, LIFE, START)
    authorities, certificates = {before.authority}, {before.cert}
    while now < START + 2.1 * AUTHORITY_LIFE:
        now += DAY
        after = due(before, NAMES, LIFE, now)
        if after != before:
            for one, other in ((before, after), (after, before), (after, after)):
                assert trusts(one, other, now), now
        authorities.add(after.authority)
        certificates.add(after.cert)
        before = after
    assert len(authorities) == 4
    assert len(certificates) > 100
    assert before.trusted.count(b"BEGIN") == 2, "what has run out is trusted no more"


def test_the_charts_certificates_of_before_go_on_until_the_new_authority_is_known() -> None:
    """The version before kept no authority's key."""
    former = due(Kept(), NAMES, timedelta(days=3650), START)
    first = due(Kept(trusted=former.trusted, cert=former.cert, key=former.key), NAMES, LIFE, START + DAY)
    assert first.cert == former.cert
    assert first.trusted.endswith(former.trusted)
    assert due(first, NAMES, LIFE, START + DAY + timedelta(minutes=59)) == first
    second = due(first, NAMES, LIFE, START + 2 * DAY)
    assert second.cert != former.cert
    assert trusts(first, second, START + 2 * DAY)
    assert not trusts(former, second, START + 2 * DAY)


def test_killed_between_the_two_secrets_it_goes_on_where_it_was() -> None:
    whole = due(Kept(), NAMES, LIFE, START)
    later = START + 9 * 365 * DAY
    renewed = due(whole, NAMES, LIFE, later)
    half = Kept(renewed.authority, renewed.authority_key, whole.trusted, whole.cert, whole.key)
    again = due(half, NAMES, LIFE, later + DAY)
    assert again.trusted == renewed.trusted
    assert again.cert == whole.cert, "not yet: nobody had heard of the new authority"


def test_a_room_and_another_shake_hands_with_it(tmp_path) -> None:
    kept = due(Kept(), NAMES, LIFE, datetime.now(UTC))
    for name, content in (("tls.crt", kept.cert), ("tls.key", kept.key), ("ca.crt", kept.trusted)):
        (tmp_path / name).write_bytes(content)
    ends, into, out = [], ssl.MemoryBIO(), ssl.MemoryBIO()
    for server in (False, True):
        purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
        context = ssl.create_default_context(purpose, cafile=str(tmp_path / "ca.crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
        pipes = (into, out) if server else (out, into)
        ends.append(context.wrap_bio(*pipes, server_side=server, server_hostname=None if server else NAMES[0]))
    waiting = list(ends)
    for _ in range(6):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert not waiting
    assert all(end.getpeercert() for end in ends)


@pytest.mark.parametrize("field", ["authority", "trusted", "cert"])
def test_what_is_no_certificate_is_not_overwritten(field: str) -> None:
    with pytest.raises(ValueError, match="PEM"):
        due(Kept(**{field: b"something else"}), NAMES, LIFE, START)
