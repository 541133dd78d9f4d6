"""Watches a Delta table's log as another engine would see it: which version names which position, and when it appeared."""
from __future__ import annotations

import json
import os
import threading
import time


class LogWatcher(threading.Thread):
    """Polls every millisecond for the next commit file; `seen` holds (time, source position) in order.

    `application` is how the position's application id ends, "/public.orders". A position is the LSN of the last commit record
    that the table has, which lies before the WAL's end as it was after that commit, and at or after its end before it.
    """

    def __init__(self, table_dir: str, application: str):
        super().__init__(daemon=True)
        self.log = os.path.join(table_dir, "_delta_log")
        self.application = application
        self.next = 1 + max((int(n[:20]) for n in os.listdir(self.log) if n.endswith(".json") and n[:20].isdigit()), default=-1)
        self.seen: list[tuple[float, int]] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            path = os.path.join(self.log, f"{self.next:020}.json")
            if os.path.exists(path):
                now = time.monotonic()
                position = self.position(path)
                if position is not None:
                    self.seen.append((now, position))
                self.next += 1
            else:
                time.sleep(0.001)

    def position(self, path: str) -> int | None:
        for line in open(path):
            txn = json.loads(line).get("txn")
            if txn and txn["appId"].endswith(self.application):
                return txn["version"]
        return None

    def finish(self) -> list[tuple[float, int]]:
        self.done.set()
        self.join()
        return self.seen

    def wait_for(self, lsn: int, seconds: float) -> float:
        """When the first commit at or beyond `lsn` appeared; raises after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.seen and self.seen[-1][1] >= lsn:
                return next(at for at, position in self.seen if position >= lsn)
            time.sleep(0.001)
        raise TimeoutError("no commit reached the position")
