"""Agreement between ranks without collectives: a hung or dead rank ends in an error at the deadline, not in a hang.

One primitive, the ballot: every rank does its part and posts the outcome in a `torch.distributed` store, rank 0
combines them, and every rank gets the same verdict, be it a result or the same error. The store is polled with
short calls, because a blocking wait holds the store's lock and would stop the training thread beside an
asynchronous save.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol

import xxhash

from automodel_ckpt import errors
from automodel_ckpt.errors import CheckpointError, SaveFailed


class Coordinator(Protocol):
    """Ranks ``0 .. world_size - 1`` that save or load together."""

    rank: int
    world_size: int

    def ballot(
        self,
        title: str,
        part: Callable[[], Any],
        combine: Callable[[list[Any]], Any],
        *,
        failure: type[CheckpointError] = SaveFailed,
    ) -> Any:
        """Run ``part`` on every rank and ``combine`` on rank 0; return or raise its outcome everywhere.

        What ``part`` and ``combine`` return is plain JSON. Errors that are not `CheckpointError` become ``failure``.
        """
        ...


class Alone:
    """One process: no store, no messages."""

    rank = 0
    world_size = 1

    def ballot(
        self,
        title: str,
        part: Callable[[], Any],
        combine: Callable[[list[Any]], Any],
        *,
        failure: type[CheckpointError] = SaveFailed,
    ) -> Any:
        try:
            return combine([part()])
        except OSError as error:
            raise failure(f"{title}: {describe(error)}") from error


class StoreCoordinator:
    """Ranks that share a `torch.distributed` store.

    Args:
        store: shared by all ranks.
        rank, world_size: of this process.
        deadline_s: seconds that rank 0 waits for the slowest rank in one ballot; the others wait twice as long.
        prefix: keeps keys apart from those of other users of the store.
    """

    def __init__(
        self, store: Any, rank: int, world_size: int, *, deadline_s: float = 600.0, prefix: str = "automodel-ckpt"
    ) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.deadline_s, self.prefix = deadline_s, prefix
        self._ballots = 0

    def ballot(
        self,
        title: str,
        part: Callable[[], Any],
        combine: Callable[[list[Any]], Any],
        *,
        failure: type[CheckpointError] = SaveFailed,
    ) -> Any:
        self._ballots += 1
        base = f"{self.prefix}/{self._ballots}"
        outcome, cause = _attempt(part)
        try:
            if self.rank == 0:
                verdict = self._collect(title, base, outcome, combine)
                self._post(f"{base}/verdict", verdict)
            else:
                self._post(f"{base}/{self.rank}", {"title": title, **outcome})
                verdict = self._wait(f"{base}/verdict", 2 * self.deadline_s)
            if verdict is not None:
                self._part(base, failed="error" in verdict)
        except _STORE_ERRORS as error:
            raise failure(f"{title}: rank {self.rank} lost the store of the process group: {error}") from error
        if verdict is None:
            raise failure(
                f"{title}: no verdict from rank 0 within {2 * self.deadline_s:g} s. It has died or hangs; see its log."
            )
        if "error" in verdict:
            raise getattr(errors, verdict["kind"], failure)(verdict["error"]) from cause
        return verdict["value"]

    def _collect(self, title: str, base: str, own: dict, combine: Callable) -> dict:
        """On rank 0: everybody's outcome, then the verdict."""
        outcomes = {0: {"title": title, **own}}
        end = time.monotonic() + self.deadline_s
        for rank in range(1, self.world_size):
            outcome = self._wait(f"{base}/{rank}", max(0.0, end - time.monotonic()))
            if outcome is None:
                missing = [r for r in range(rank, self.world_size) if not self.store.check([f"{base}/{r}"])]
                return _failure(
                    SaveFailed(
                        f"{title}: rank {', '.join(map(str, missing))} did not answer within {self.deadline_s:g} s. "
                        "It has died or hangs; see its log. Nothing was published."
                    )
                )
            outcomes[rank] = outcome
        titles = {rank: outcome["title"] for rank, outcome in outcomes.items()}
        if len(set(titles.values())) > 1:
            return _failure(SaveFailed(f"ranks are doing different things: {titles}. Call save and load on all ranks."))
        failed = [f"rank {rank}: {outcome['error']}" for rank, outcome in outcomes.items() if "error" in outcome]
        if failed:
            kinds = {outcome["kind"] for outcome in outcomes.values() if "error" in outcome}
            kind = kinds.pop() if len(kinds) == 1 else ""
            return {"error": f"{title}: {'; '.join(failed)}", "kind": kind}
        return _attempt(lambda: combine([outcomes[rank]["value"] for rank in range(self.world_size)]))[0]

    def _post(self, key: str, value: dict) -> None:
        self.store.set(key, json.dumps(value))

    def _wait(self, key: str, timeout_s: float) -> Any:
        """The value under ``key``, or None at the deadline."""
        end, pause = time.monotonic() + timeout_s, 0.0005
        while not self.store.check([key]):
            if time.monotonic() > end:
                return None
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        return json.loads(self.store.get(key))

    def _part(self, base: str, *, failed: bool) -> None:
        """End a ballot: rank 0, in whose process the store lives, stays until every rank has read the verdict."""
        count = self.store.add(f"{base}/read", 1)
        if self.rank:
            return
        # After a failure somebody may be dead; those alive poll at least every 50 ms.
        end = time.monotonic() + (1.0 if failed else min(self.deadline_s / 4, _PARTING_S))
        while count < self.world_size and time.monotonic() < end:
            time.sleep(0.0005)
            count = self.store.add(f"{base}/read", 0)
        if count == self.world_size:
            for key in ("verdict", "read", *map(str, range(1, self.world_size))):
                self.store.delete_key(f"{base}/{key}")


_PARTING_S = 10.0

# TCPStore reports a lost server as DistNetworkError and a timeout as DistStoreError: both are RuntimeErrors.
_STORE_ERRORS = (RuntimeError, ConnectionError)


def _attempt(part: Callable[[], Any]) -> tuple[dict, Exception | None]:
    try:
        return {"value": part()}, None
    except Exception as error:  # noqa: BLE001 - every failure must reach the other ranks, which raise it in turn
        return _failure(error), error


def _failure(error: Exception) -> dict:
    kind = type(error).__name__ if isinstance(error, CheckpointError) else ""
    text = str(error) if isinstance(error, CheckpointError) else describe(error)
    return {"error": text, "kind": kind}


def describe(error: BaseException) -> str:
    """An exception in one line, with path and errno where it has them."""
    if isinstance(error, OSError) and error.errno is not None:
        import errno

        return f"{errno.errorcode.get(error.errno, error.errno)} ({error.strerror}) at {error.filename}"
    return f"{type(error).__name__}: {error}"


def make_coordinator(process_group: Any = None, *, deadline_s: float = 600.0) -> Coordinator:
    """The coordinator of a process group, of the default one, or of a single process.

    Args:
        process_group: a ``ProcessGroup``, a ready `Coordinator`, or None for the default group if there is one.
        deadline_s: seconds to wait for the slowest rank.
    """
    import torch.distributed as dist

    if process_group is not None and hasattr(process_group, "ballot"):
        return process_group
    if not (dist.is_available() and dist.is_initialized()):
        return Alone()
    world_size = dist.get_world_size(process_group)
    if world_size == 1:
        return Alone()
    ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD)
    key = tuple(ranks)
    if key not in _COORDINATORS or _COORDINATORS[key].store is not _default_store():
        # One coordinator per set of ranks: its counter keeps the ballots of successive saves apart.
        prefix = f"automodel-ckpt/{xxhash.xxh3_64_hexdigest(repr(key).encode())}"
        _COORDINATORS[key] = StoreCoordinator(_default_store(), dist.get_rank(process_group), world_size, prefix=prefix)
    coordinator = _COORDINATORS[key]
    coordinator.deadline_s = deadline_s
    return coordinator


_COORDINATORS: dict[tuple[int, ...], StoreCoordinator] = {}


def _default_store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
