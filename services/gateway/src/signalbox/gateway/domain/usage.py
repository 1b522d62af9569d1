"""What a reply's usage is called between the rooms."""

from signalbox.v1.common_pb2 import IterationUsage, TokenUsage
from signalbox.wire.usage import Usage


def token_usage(usage: Usage) -> TokenUsage:
    """Return billed usage as the contracts' message."""
    return TokenUsage(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_tokens, cache_write_1h_tokens=usage.cache_write_1h_tokens,
        cache_read_tokens=usage.cache_read_tokens, web_search_requests=usage.web_search_requests,
        service_tier=usage.service_tier, inference_geo=usage.inference_geo, speed=usage.speed,
        other_models=[IterationUsage(model=m, usage=token_usage(u)) for m, u in usage.other_models]
        if usage.other_models else None,
    )
