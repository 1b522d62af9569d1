"""A whole Signalbox before a simulated provider, from start to end: what every test over both begins and ends with."""

from typing import Self

from tests.support.instance import Instance
from tests.support.sim import Simulator


class Staged:
    """Starts `instance`, whose provider `sim` runs already, and ends both; neither may have failed by itself."""

    instance: Instance
    sim: Simulator

    def __enter__(self) -> Self:
        try:
            self.instance.start()
        except BaseException:
            self.sim.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            status = self.instance.stop()
        finally:
            self.instance.process.kill()
            self.sim.stop()
        assert status == 0, f"up exited {status}"
        assert not self.sim.errors()
