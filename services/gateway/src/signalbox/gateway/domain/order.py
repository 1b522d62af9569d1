"""What one caller asks for, gathered as the request is read: for admission, the records and the metrics."""

from dataclasses import dataclass, field

from signalbox.gateway.domain.caller import Caller, session_digest
from signalbox.gateway.domain.ports import Trace
from signalbox.v1.scheduler_pb2 import AdmitRequest, InspectRequest
from signalbox.wire.clients import session_of
from signalbox.wire.request import RequestFacts, conversation_seed


@dataclass(slots=True)
class Order:
    """Grows while the request is read and relayed; `facts` is None until its body was read."""

    request_id: str
    route: str
    caller: Caller = field(repr=False)
    key_id: str = ""
    owner: str = ""
    facts: RequestFacts | None = field(default=None, repr=False)
    model: str = ""             # asked for
    streamed: bool = False      # a stream is asked for
    attempts: int = 0
    repinned: bool = False
    limit_lines: bytes = b""    # the key's own limits, as lines of the answer's head
    trace: Trace | None = field(default=None, repr=False)    # None unless an operator wants traces
    # for the metrics
    outcome: str = "ok"
    first_content_s: float | None = None    # since the request's head
    provider_s: float = 0.0                 # spent waiting for providers

    def read(self, facts: RequestFacts) -> None:
        """Note what the body says. Counting tokens never streams."""
        self.facts = facts
        self.model = facts.model
        self.streamed = facts.stream and self.route == "messages"

    def inspection(self, *, with_limits: bool = False, with_accounts: bool = False) -> InspectRequest:
        """Return the question whether this key may be used at all."""
        return InspectRequest(
            key_hash=self.caller.key_hash, source_address=self.caller.source, client=self.caller.client,
            with_limits=with_limits, with_accounts=with_accounts,
        )

    def admission(self, body: bytes, secret: bytes) -> AdmitRequest:
        """Return the question to the scheduler; how long the caller waits for an account is left to the pool."""
        facts, caller = self.facts, self.caller
        assert facts is not None
        session = session_of(caller.session, facts)
        return AdmitRequest(
            request_id=self.request_id, key_hash=caller.key_hash, route=self.route, model=facts.model,
            models=facts.models, client=caller.client, source_address=caller.source,
            session=session_digest(secret, caller.key_hash, session or conversation_seed(body)),
            session_derived=not session, state_bound=facts.state_bound, stream=self.streamed,
            input_bytes=facts.input_bytes, max_tokens=facts.max_tokens, unseen_input=facts.unseen_input,
            speed=facts.speed, inference_geo=facts.inference_geo, wants_limit_lines=True,
        )
