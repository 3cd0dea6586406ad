"""The scheduler process: leads by lease, and runs the reconciler's passes. Any number may run; one leads.

It holds nothing that cannot be lost. SIGTERM and SIGINT end it between two passes; training goes on.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType

from service.cluster import Cluster
from service.database import Store, open_store
from service.errors import ServiceError
from service.leases import Lease, LeaseKeeper, LeaseLostError
from service.ray_driver import RayDriver
from service.reconciler import Reconciler
from service.records import Records
from service.settings import Settings

log = logging.getLogger(__name__)

INTENT_SECONDS = 0.05  # how often a sleeping scheduler looks for new wishes: one small query
STANDBY_SECONDS = 1.0
TROUBLE_SECONDS = 1.0  # pause after a pass that failed; doubles up to
TROUBLE_LONGEST = 10.0


def main(settings: Settings) -> int:
    """Blocks until SIGTERM or SIGINT."""
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)

    def cluster() -> Cluster:
        return RayDriver(settings.ray_address, settings.standby_workers, join=settings.ray_join)

    Scheduler(settings, cluster, stop).run()
    return 0


class Scheduler:
    """The loop, with the cluster and the stop given from outside."""

    def __init__(self, settings: Settings, cluster: Callable[[], Cluster], stop: threading.Event) -> None:
        self._settings = settings
        self._cluster = cluster
        self._stop = stop

    def run(self) -> None:
        store = self._open_store()
        if store is None:
            return
        lease = Lease(store, self._settings.lease_seconds)
        try:
            while not self._stop.is_set():
                if self._take(lease):
                    self._lead(store, lease)
                else:
                    self._stop.wait(STANDBY_SECONDS)
        finally:
            store.close()

    def _open_store(self) -> Store | None:
        """Waits for the database: it may start after us. None: told to stop meanwhile."""
        trouble = Trouble("the database cannot be opened")
        while not self._stop.is_set():
            try:
                return open_store(self._settings.database_url)
            except ServiceError as error:
                self._stop.wait(trouble.pause(error))
        return None

    def _take(self, lease: Lease) -> bool:
        try:
            return lease.acquire()
        except ServiceError as error:
            log.warning("the lease cannot be asked for: %s", error)
            return False

    def _lead(self, store: Store, lease: Lease) -> None:
        """Until told to stop, or somebody else leads."""
        log.info("this scheduler leads (token %s)", lease.token)
        keeper, cluster, records = LeaseKeeper(lease), self._cluster(), Records(store, lease)
        keeper.start()
        try:
            self._passes(records, Reconciler(records, cluster, self._settings))
        except LeaseLostError as error:
            log.warning("this scheduler does not lead any more: %s", error)
        finally:
            keeper.stop()
            cluster.close()
            self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        try:
            lease.release()
        except ServiceError as error:  # it runs out by itself
            log.warning("the lease could not be given back: %s", error)

    def _passes(self, records: Records, reconciler: Reconciler) -> None:
        trouble = Trouble("a pass failed")
        while not self._stop.is_set():
            try:
                mark = records.intent_mark()
                done = reconciler.run_pass(datetime.now(UTC), time.monotonic())
                trouble.over()
                if not done.changed:
                    pause = self._settings.poll_active_seconds if done.active else self._settings.poll_idle_seconds
                    self._sleep(records, mark, pause)
            except ServiceError as error:
                self._stop.wait(trouble.pause(error))
            except LeaseLostError:
                raise
            except Exception as error:
                log.exception("a pass failed in a way nobody thought of")
                self._stop.wait(trouble.pause(error))

    def _sleep(self, records: Records, mark: object, seconds: float) -> None:
        """At most so long; less when a user wants something new since ``mark``."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop.wait(min(left, INTENT_SECONDS)) or records.intent_mark() != mark:
                return


class Trouble:
    """Growing pauses while something fails, with a line in the log when it begins and when it is over."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._times = 0

    def pause(self, error: Exception) -> float:
        if self._times == 0:
            log.warning("%s: %s", self._what, error)
        self._times += 1
        return min(TROUBLE_SECONDS * (1 << min(self._times - 1, 10)), TROUBLE_LONGEST)

    def over(self) -> None:
        if self._times:
            log.info("no more trouble: %s (%d times)", self._what, self._times)
        self._times = 0
