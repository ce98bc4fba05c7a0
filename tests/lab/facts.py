"""What the programs, the gate and the runner wrote down while a run was running."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


@dataclass
class Facts:
    """The facts of one run, by kind."""

    starts: dict[str, Fact] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    foreign: dict[str, Fact] = field(default_factory=dict)
    unsampled: dict[str, Fact] = field(default_factory=dict)
    planted: list[Fact] = field(default_factory=list)
    headers: list[Fact] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    runner: dict[str, int] = field(default_factory=dict)

    def parent_of(self, span_id: str) -> str | None:
        """Give the parent of a span, whoever knows it."""
        for book in (self.starts, self.foreign, self.unsampled):
            if span_id in book:
                parent: str | None = book[span_id].get("parent") or self._unsampled_server(span_id)
                return parent
        return None

    def _unsampled_server(self, span_id: str) -> str | None:
        """Give the unsampled request in which an unsampled client span was made."""
        trace_id = self.unsampled.get(span_id, {}).get("trace_id")
        for other, fact in self.unsampled.items():
            if fact["trace_id"] == trace_id and fact.get("parent"):
                return other
        return None


def read_facts(folder: Path) -> Facts:
    """Read every book of a run."""
    facts = Facts()
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            _take(facts, json.loads(line))
    return facts


def _take(facts: Facts, fact: Fact) -> None:
    match fact.pop("fact"):
        case "start":
            facts.starts[fact["span_id"]] = fact
        case "end":
            facts.ends[fact["span_id"]] = fact["time"]
        case "batch":
            for span_id in fact["spans"]:
                facts.outcomes[span_id].add(fact["outcome"])
        case "foreign":
            facts.foreign[fact["span_id"]] = fact
        case "unsampled":
            facts.unsampled[fact["span_id"]] = fact
        case "header":
            facts.headers.append(fact)
        case "truth":
            facts.planted.append(fact)
        case "killed":
            facts.killed.add(fact["pid"])
            facts.runner.setdefault("killed", fact["time"])
        case other:
            facts.runner[other] = fact["time"]
