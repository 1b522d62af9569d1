"""What the people of a workplace do all day, in some minutes: each asks in their own way, and now and then something
breaks, so that dashboards have something to show.
"""

import asyncio
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

import httpx2

from tests.support.load import ask, message
from tests.support.workplace import Workplace, key_of


@dataclass(frozen=True)
class Habit:
    """How one person asks: how many at once, how long between requests, for what."""

    person: str
    model: str
    callers: int
    pause_s: float
    streamed: float
    context_words: int
    deltas: int


HABITS = (
    Habit("ada", "claude-opus-5-5", 3, 1.5, 1.0, 6000, 60),
    Habit("grace", "claude-sonnet-5-5", 4, 1.0, 0.8, 3000, 40),
    Habit("linus", "claude-haiku-4-5", 3, 0.5, 0.3, 800, 12),
    Habit("kim", "claude-sonnet-5-5", 2, 3.0, 0.5, 500, 20),
    Habit("nightly", "claude-sonnet-5-5", 1, 4.0, 0.0, 4000, 30),
)
TROUBLES = (
    (0.02, "[[sim once status=500]]"), (0.01, "[[sim cut=fin cut.at=half]]"), (0.02, "[[sim status=400]]"),
    (0.01, "[[sim once drop=reset]]"),
)
HANGS_UP = 0.03


async def pass_by(place: Workplace, minutes: float) -> None:
    """Let the day go by. Its troubles come at the same shares of it, however long it is."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + minutes * 60
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(base_url=place.instance.url, timeout=60, limits=limits) as http:
        people = [
            asyncio.create_task(_ask_for_ever(http, habit, random.Random(f"{habit.person} {n}")))
            for habit in HABITS for n in range(habit.callers)
        ]
        sim = place.sim
        breaks: tuple[tuple[float, Callable[[], object]], ...] = (
            (0.25, lambda: sim.script(standing={"status": 529}, account="acme-2", lasts_s=minutes * 5)),
            (0.45, lambda: sim.script({"status": 429, "retry_after": int(minutes * 6)}, account="research")),
            (0.60, lambda: place.instance.kill("gateway", signal.SIGKILL)),
            (0.75, lambda: sim.script(standing={"first_delay_s": 1.5}, account="acme-1", lasts_s=minutes * 5)),
        )
        for share, cause in breaks:
            await asyncio.sleep(max(0.0, end_s - minutes * 60 * (1 - share) - loop.time()))
            await asyncio.to_thread(cause)
        await asyncio.sleep(max(0.0, end_s - loop.time()))
        for person in people:
            person.cancel()
        await asyncio.gather(*people, return_exceptions=True)


async def _ask_for_ever(http: httpx2.AsyncClient, habit: Habit, rng: random.Random) -> None:
    system = [{
        "type": "text", "text": f"The handbook of {habit.person}. " + "word " * habit.context_words,
        "cache_control": {"type": "ephemeral"},
    }]
    while True:
        prompt = f"Question {rng.random()} [[sim deltas={rng.randint(2, habit.deltas)} delta_delay_s=0.04]]"
        drawn = rng.random()
        for share, trouble in TROUBLES:
            if drawn < share:
                prompt += trouble
                break
            drawn -= share
        body = message(prompt, stream=rng.random() < habit.streamed, model=habit.model, system=system, max_tokens=2000)
        leaves_after_s = rng.uniform(0.2, 1.0) if rng.random() < HANGS_UP else None
        await ask(http, key_of(habit.person), body, hang_up_after_s=leaves_after_s)
        await asyncio.sleep(rng.expovariate(1 / habit.pause_s))
