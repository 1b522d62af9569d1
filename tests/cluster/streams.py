"""Keeps many slow streams open through a gateway and counts what became of them; runs in a pod, standard library only.

    python3 streams.py HOST:PORT KEY STREAMS SECONDS

Each of STREAMS slots asks again as soon as its stream has ended, until a line or the end comes on standard input, or SECONDS
are over, and then lets the last one end.
Prints one JSON object: counts by what happened, and the request ids of the streams that were whole.
"""

import asyncio
import json
import socket
import sys
from collections import Counter

PROMPT = "[[sim deltas=40 delta_delay_s=0.5]] hello"
BODY = json.dumps({
    "model": "claude-sonnet-5-5", "max_tokens": 4096, "stream": True, "messages": [{"role": "user", "content": PROMPT}],
}).encode()
ASK_AGAIN_S = 1.0


async def stream(host: str, port: int, key: str) -> tuple[str, str]:
    """Open one stream on a connection of its own; return what became of it and its request id."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 15)
    except (OSError, TimeoutError) as e:
        return f"no connection: {type(e).__name__}", ""
    try:
        head = (
            f"POST /v1/messages HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\nanthropic-version: 2023-06-01\r\n"
            f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(BODY)}\r\n\r\n"
        )
        writer.write(head.encode() + BODY)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        lines = answer.decode().lower().split("\r\n")
        status = lines[0].split(" ")[1]
        request_id = next((v.split(": ")[1] for v in lines if v.startswith("x-signalbox-request-id: ")), "")
        body = await asyncio.wait_for(reader.read(-1), 300)
        if status != "200":
            code = json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])["error"].get("details", {})
            return f"{status} {code.get('error_code', '')}", request_id
        return ("whole" if b"event: message_stop" in body else "cut"), request_id
    except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as e:
        return f"broken: {type(e).__name__}", ""
    finally:
        writer.close()


async def main() -> None:
    """Run all slots."""
    name, port = sys.argv[1].rsplit(":", 1)
    host = socket.gethostbyname(name)  # once: two hundred slots that ask again and again measure the cluster's DNS
    counts: Counter[str] = Counter()
    whole: list[str] = []
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told() -> None:
        loop.remove_reader(0)
        enough.set()

    loop.add_reader(0, told)
    loop.call_later(float(sys.argv[4]), enough.set)

    async def slot(number: int) -> None:
        await asyncio.sleep(number * 0.02)
        while not enough.is_set():
            what, request_id = await stream(host, int(port), sys.argv[2])
            counts[what] += 1
            if what == "whole":
                whole.append(request_id)
            else:
                await asyncio.sleep(ASK_AGAIN_S)

    await asyncio.gather(*(slot(n) for n in range(int(sys.argv[3]))))
    print(json.dumps({"counts": counts, "whole": whole}))


if __name__ == "__main__":
    asyncio.run(main())
