"""Looks for peers' fresh snapshots in a store, again and again, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from odist.exchange.base import Snapshot
from odist.exchange.shelf import Shelf


class Poller:
    """The newest sound snapshot of every peer.

    seconds: between two looks; note: told of a look that failed
    looked: set once every peer has been looked for
    """

    def __init__(
        self, shelf: Shelf, *, peers: Sequence[int], seconds: float, note: Callable[[Exception], None]
    ) -> None:
        self.shelf, self.peers, self.seconds, self.note = shelf, list(peers), seconds, note
        self._fresh: dict[int, Snapshot] = {}
        self._lock = threading.Lock()
        self.looked = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="poll", daemon=True).start()

    def newest(self, peer: int) -> Snapshot | None:
        """What the last looks found of a peer; comes at once."""
        with self._lock:
            return self._fresh.get(peer)

    def follow(self, peers: Sequence[int]) -> None:
        """Look at these peers alone from now on."""
        with self._lock:
            self.peers = list(peers)
            self._fresh = {peer: snapshot for peer, snapshot in self._fresh.items() if peer in peers}

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _look(self) -> None:
        while not self._closed.is_set():
            for peer in self.peers:
                try:
                    self._look_once(peer)
                except Exception as error:  # every back end of fsspec has kinds of its own
                    self.note(error)
            self.looked.set()
            self._closed.wait(self.seconds)

    def _look_once(self, peer: int) -> None:
        held = self.newest(peer)
        newer = [m for m in self.shelf.manifests(peer) if held is None or m.age > held.age]
        snapshot = self.shelf.newest(newer, finite=True)
        if snapshot is not None:
            with self._lock:
                if peer in self.peers:
                    self._fresh[peer] = snapshot
