"""What `helm test` runs: one streamed call through the gateway, tried until the documents are in force."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

BODY = {
    "model": "claude-haiku-4-5", "max_tokens": 64, "stream": True, "messages": [{"role": "user", "content": "hello"}],
}
until = time.monotonic() + 120
while True:
    request = urllib.request.Request(
        os.environ["GATEWAY"] + "/v1/messages",
        data=json.dumps(BODY).encode(),
        headers={"x-api-key": os.environ["RELAY_KEY"], "content-type": "application/json",
                 "anthropic-version": "2023-06-01"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            whole = b"event: message_stop" in reply.read()
            print(reply.status, "request", reply.headers["x-signalbox-request-id"], "whole" if whole else "cut")
            sys.exit(0 if whole else 1)
    except urllib.error.HTTPError as e:
        answer = f"{e.code} {e.read(500).decode(errors='replace')}"
    except OSError as e:
        answer = str(e)
    if time.monotonic() > until:
        sys.exit(f"the gateway did not relay a call within two minutes; its last answer: {answer}")
    time.sleep(1)
