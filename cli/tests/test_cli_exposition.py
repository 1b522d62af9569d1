"""Merging Prometheus pages: labels, grouping, and samples that try to confuse it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from signalbox.cli.supervisor.exposition import merge


def page(worker: int) -> str:
    registry = CollectorRegistry()
    Counter("signalbox_requests_total", "Requests with } and \" in the help.", ["route"], registry=registry).labels(
        'odd "} value',
    ).inc(worker + 1)
    Gauge("signalbox_in_flight", "No labels.", registry=registry).set(worker)
    Histogram("signalbox_seconds", "Buckets.", registry=registry, buckets=(1, 2)).observe(1.5)
    return generate_latest(registry).decode()


def test_every_sample_survives_with_its_processs_labels() -> None:
    pages = [({"room": "gateway", "worker": str(n)}, page(n)) for n in range(3)]
    merged = list(text_string_to_metric_families(merge(pages)))
    names = [family.name for family in merged]
    assert len(names) == len(set(names)), "a family stands in two places"
    samples = [s for family in merged for s in family.samples]
    single = [s for family in text_string_to_metric_families(page(0)) for s in family.samples]
    assert len(samples) == 3 * len(single)
    counted = [s for s in samples if s.name == "signalbox_requests_total"]
    requests = {s.labels["worker"]: (s.value, s.labels["route"]) for s in counted}
    assert requests == {str(n): (n + 1, 'odd "} value') for n in range(3)}
    assert all(s.labels["room"] == "gateway" for s in samples)


def test_help_and_type_stand_once() -> None:
    merged = merge([({"room": "a"}, page(0)), ({"room": "b"}, page(1))])
    assert merged.count("# TYPE signalbox_in_flight gauge") == 1
    assert merged.count("# HELP signalbox_in_flight ") == 1


def test_nothing_merges_to_nothing() -> None:
    assert merge([]) == ""
    assert merge([({"room": "a"}, "")]) == ""


def test_samples_without_comments_and_empty_label_sets() -> None:
    assert merge([({"room": "a"}, "up 1\nup{} 2\n")]) == 'up{room="a"} 1\nup{room="a"} 2\n'
