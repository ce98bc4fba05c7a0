"""Whether names and peer addresses allow one operation to call another."""

import re
from typing import Final

import polars as pl

from tracelab.structure.skeleton import CONSUMER, SERVER, Skeleton

_METHODS: Final = frozenset(
    ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE")
)
_MESSAGING: Final = frozenset(
    (
        *("publish", "send", "create", "produce", "process", "receive", "deliver", "consume"),
        *("poll", "settle", "ack", "enqueue", "dequeue", "handle"),
    )
)
_RPC: Final = re.compile(r"^/?[\w.$-]+/\w+$")
_TASK: Final = re.compile(r"^(?:apply_async|run)/(.+)$")
"""Celery's instrumentation names both ends of a task like this."""

_WORD: Final = re.compile(r"[A-Za-z0-9]+")

_PUBLIC: Final = re.compile(
    r"^[a-z0-9-]+(\.[a-z0-9-]+)*\.(com|net|org|io|co|dev|app|cloud|ai|info|biz|edu|gov|eu|us|uk|ca"
    r"|de|fr|es|it|nl|ch|se|pl|br|in|cn|jp|kr|au|ru)$"
)
"""Names of the public internet, by the commonest of their top-level domains."""

_FROM_OUTSIDE: Final = frozenset(("webjs", "swift", "android", "kotlin", "dart"))
"""SDK languages of browsers and phones: they reach their own back end by its public name."""

MIN_CONVENTION: Final = 20
"""Answered calls from which on it is known whether peer addresses name services here."""


class Peers:
    """What names and peer addresses say of hops that were never seen.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        addresses = skeleton.peers["server_address"]
        self._address = {code: text for code, text in enumerate(addresses) if text is not None}
        self._names = skeleton.ops["name"].fill_null("").to_list()
        self._services = [_words(name) for name in skeleton.services]
        self._hosts = _hosts(skeleton)
        answered = _answered(skeleton)
        self._known: dict[int, set[int]] = {}
        named = calls = 0
        for peer, service, count in answered.iter_rows():
            if peer in self._address:
                self._known.setdefault(peer, set()).add(service)
                calls += count
                named += count * self._says(peer, service)
        self._telling = calls >= MIN_CONVENTION and named >= 0.9 * calls

    def verdict(self, op: int, caller: int) -> int:
        """Tell what speaks for a hop apart from time.

        Parameters
        ----------
        op : int
            Operation of the callee, of kind SERVER or CONSUMER.
        caller : int
            Row of a caller.

        Returns
        -------
        int
            1 where the caller names the callee or its service, -1 where it names something
            else, 0 where it does not tell.

        Raises
        ------
        IndexError
            If there is no such row or operation.
        """
        skeleton = self._skeleton
        kind = int(skeleton.op_kind[op])
        mine, other = self._names[op], self._names[int(skeleton.op[caller])]
        named = _name_verdict(mine, other, messaging=kind == CONSUMER)
        if kind == CONSUMER or named < 0:
            return named
        peer = int(skeleton.column("peer")[caller])
        addressed = self._peer_verdict(peer, int(skeleton.op_service[op]))
        if addressed == 0 and self._is_abroad(peer, int(skeleton.process[caller])):
            return -1
        return -1 if addressed < 0 else max(named, addressed)

    def _peer_verdict(self, peer: int, service: int) -> int:
        if peer not in self._address:
            return 0
        if self._says(peer, service) or service in self._known.get(peer, ()):
            return 1
        others = range(len(self._services))
        strange = self._telling or peer in self._known
        return -1 if strange or any(self._says(peer, other) for other in others) else 0

    def _is_abroad(self, peer: int, process: int) -> bool:
        """Whether a back end calls a public name that nothing here bears: a third party.

        What such a party then asks of us is a call-back, which carries no context of ours.
        """
        host = (self._address.get(peer) or "").rsplit(":", 1)[0].lower()
        language = self._skeleton.processes["sdk_language"][process]
        return bool(_PUBLIC.match(host)) and language not in _FROM_OUTSIDE

    def _says(self, peer: int, service: int) -> bool:
        """Whether an address holds the name of a service or of one of its hosts."""
        address, words = self._address[peer] or "", self._services[service]
        host = address.rsplit(":", 1)[0].lower()
        if host in self._hosts.get(service, ()):
            return True
        labels = [_words(label) for label in host.split(".")]
        n = len(words)
        return bool(n) and any(
            label[at : at + n] == words for label in labels for at in range(len(label) - n + 1)
        )


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _hosts(skeleton: Skeleton) -> dict[int, set[str]]:
    """Host names on which each service runs, unless all services share it."""
    rows = skeleton.processes.select("service_name", "host_name").drop_nulls().unique()
    number = {name: code for code, name in enumerate(skeleton.services)}
    alone = rows.filter(pl.col("service_name").n_unique().over("host_name") == 1)
    hosts: dict[int, set[str]] = {}
    for service, host in alone.iter_rows():
        if service in number:
            hosts.setdefault(number[service], set()).add(host.lower())
    return hosts


def _answered(skeleton: Skeleton) -> pl.DataFrame:
    """Peer address of the caller, service of its server, and how often."""
    rows = skeleton.intact
    rows = rows[skeleton.kind[rows] == SERVER]
    return (
        pl.DataFrame(
            {
                "peer": skeleton.column("peer")[skeleton.parent[rows]],
                "service": skeleton.service[rows],
            }
        )
        .group_by("peer", "service")
        .len()
        .sort("peer", "service")
    )


def _destination(name: str) -> list[str]:
    """Words of a span name beside the messaging operation; none where it tells no operation."""
    task = _TASK.match(name)
    words = _words(name)
    if task:
        return _words(task[1])
    if len(words) > 1 and words[-1] in _MESSAGING:
        return words[:-1]
    return words[1:] if len(words) > 1 and words[0] in _MESSAGING else []


def _name_verdict(mine: str, other: str, *, messaging: bool) -> int:
    """Compare the names of callee and caller: HTTP method, RPC method, or destination."""
    if messaging:
        here, there = _destination(mine), _destination(other)
        return 0 if not here or not there else 1 if here == there else -1
    if _RPC.match(other):
        return 1 if other.strip("/").lower() in mine.lower() else -1
    methods = [next((w for w in name.split() if w in _METHODS), None) for name in (mine, other)]
    if None in methods or methods[0] == methods[1]:
        return 0
    return -1
