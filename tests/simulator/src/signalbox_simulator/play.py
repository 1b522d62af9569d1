"""Carrying out a plan on a connection, and noting in the truth what really went out. It decides nothing."""

import asyncio
from collections.abc import Iterable

from signalbox_simulator.behaviour import Behaviour, Drop, Endless
from signalbox_simulator.http1 import Exchange
from signalbox_simulator.plan import PING, Break, End, Frame, Pour, Raw, Repeat, Send, Step, Wait
from signalbox_simulator.truth import Row

COMPLETE = "complete"
CUT = "cut"
ENDLESS_FILLING = b"a"


async def drop(exchange: Exchange, how: Drop) -> str:
    """Give no answer at all, in the way that is asked for, and return the outcome."""
    if how == "reset":
        await exchange.reset()
    elif how == "close":
        exchange.close()
    elif how == "half_close":
        exchange.half_close()
    else:
        await exchange.silence()
    return CUT


async def send_head(
    exchange: Exchange, b: Behaviour, status: int, headers: Iterable[tuple[str, str]], *, length: int | None
) -> None:
    """Send status and headers, line by line where the behaviour is slow."""
    merged = {name.lower(): value for name, value in headers}
    merged.update({name.lower(): value for name, value in b.headers.items()})
    if b.content_type is not None:
        merged["content-type"] = b.content_type
    stated = None if length is None else max(0, length + b.length_off_by)
    lines = exchange.head(status, merged.items(), length=stated)
    if not b.header_line_delay_s:
        exchange.raw(b"".join(lines))
        return
    for line in lines:
        exchange.raw(line)
        await asyncio.sleep(b.header_line_delay_s)


async def play(exchange: Exchange, row: Row, steps: Iterable[Step]) -> str:
    """Carry out the steps after the head and return the outcome."""
    for step in steps:
        if isinstance(step, Send):
            exchange.send(step.data)
            for frame in step.done:
                _note(row, frame)
            if not exchange.connection.writable.is_set():
                await exchange.drain()
        elif isinstance(step, Wait):
            await _wait(exchange, row, step)
        elif isinstance(step, Pour):
            await _pour(exchange, step.endless)
        elif isinstance(step, Repeat):
            await _repeat(exchange, row, step)
        elif isinstance(step, Raw):
            exchange.raw(step.data)
        elif isinstance(step, Break):
            return await _break(exchange, step)
        elif isinstance(step, End):
            exchange.end()
    await exchange.drain()
    return COMPLETE


async def finish(exchange: Exchange, b: Behaviour) -> None:
    """Do to the connection what the behaviour wants done after a whole answer."""
    if b.after == "close":
        exchange.close()
    elif b.after == "reset":
        await exchange.reset()
    elif b.after == "half_close":
        exchange.half_close()


def _note(row: Row, frame: Frame) -> None:
    row.frames_sent += 1
    row.delta_bytes += frame.delta_bytes
    if frame.usage is None:
        return
    told = {name: value for name, value in frame.usage.items() if value is not None}
    row.usage = {**(row.usage or {}), **told}
    row.usage_final = row.usage_final or frame.type == "message_delta"


async def _wait(exchange: Exchange, row: Row, step: Wait) -> None:
    if step.ping_s is None:
        await (exchange.silence() if step.s is None else asyncio.sleep(step.s))
        return
    left_s = float("inf") if step.s is None else step.s
    while left_s > 0:
        await asyncio.sleep(min(step.ping_s, left_s))
        left_s -= step.ping_s
        exchange.send(PING.data)
        _note(row, PING)


async def _break(exchange: Exchange, step: Break) -> str:
    if step.how == "rst":
        await exchange.reset()
    elif step.how == "fin":
        exchange.close()
    else:
        exchange.half_close()
    return CUT


async def _repeat(exchange: Exchange, row: Row, step: Repeat) -> None:
    for _ in range(step.times):
        exchange.send(step.frame.data)
        _note(row, step.frame)
        await exchange.drain()


async def _pour(exchange: Exchange, endless: Endless) -> None:
    exchange.send(b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"text":"')
    left = endless.bytes
    while left is None or left > 0:
        size = endless.piece if left is None else min(left, endless.piece)
        exchange.send(ENDLESS_FILLING * size)
        left = None if left is None else left - size
        await exchange.drain()
        await asyncio.sleep(endless.delay_s)
