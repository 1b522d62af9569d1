"""Messages put together from serialised parts are what the library itself would write."""

import pytest

from signalbox.core.embedding import embedded
from signalbox.v1.usage_pb2 import AttemptEvent, IngestBatch


@pytest.mark.parametrize("lengths", [(), (0,), (1, 0, 2), (127, 128, 129), (16_383, 16_384), (3 << 20,)])
def test_the_bytes_are_the_librarys(lengths):
    events = [AttemptEvent(reason="x" * length) for length in lengths]
    head = IngestBatch(source="gw", batch=7)
    ours = head.SerializeToString() + embedded(
        IngestBatch.EVENTS_FIELD_NUMBER, [event.SerializeToString() for event in events],
    )
    assert ours == IngestBatch(source="gw", batch=7, events=events).SerializeToString()


def test_a_field_number_beyond_one_byte():
    assert embedded(300, [b"ab"]) == b"\xe2\x12\x02ab"
