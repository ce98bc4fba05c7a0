"""An early-warning rule: when to alert, what it announces, and how well that held."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2s
from typing import Any, Final

from tracelab import html
from tracelab.exceptions import ParameterError

_WORDS: Final = {
    "5xx": "A 5xx burst",
    "error": "A burst of errors",
    "break": "A burst of broken traces",
    "swallowed": "A burst of swallowed errors",
    "retry": "A burst of retries",
}


@dataclass(frozen=True)
class WarningRule:
    """An alert on bursts of one service that announces latency rises of another.

    Parameters
    ----------
    trigger_kind : str
        What is counted: 5xx, error, break, swallowed or retry.
    trigger_service, trigger_operation, target_service, target_operation : str or None
        Whose burst precedes whose rise; an operation of None is the whole service.
    lag_s, lag_low_s, lag_high_s, lag_sigma_s : float
        Lead, its 95 % confidence interval, and the scatter of single events.
    ratio, min_errors : float
        The alert's threshold on share and number of errors within `window_s`.
    for_s, keep_firing_s, window_s, interval_s : float
        Timing of the alert.
    baseline_factor, baseline_s, baseline_offset_s : float
        The share must exceed this multiple of the share over `baseline_s`, `baseline_offset_s`
        ago.
    horizon_s : float
        A rise within this time of the alert confirms it.
    slow_edge_ns, slow_ratio : int, float
        The target counts as rising while more than this share of its requests is above the
        edge.
    status : {"proven", "unproven"}
        Proven: it held on time that it had not seen.
    reason : str
        Why it has this status.
    precision, recall, false_alarms_per_day, lead_median_s : float or None
        On later time; None where nothing could be judged.
    train_precision : float or None
        On the time it was learnt from.
    learned_until_ns : int
        End of that time, nanoseconds since 1970.
    """

    trigger_kind: str
    trigger_service: str | None
    trigger_operation: str | None
    target_service: str | None
    target_operation: str | None
    lag_s: float
    lag_low_s: float
    lag_high_s: float
    lag_sigma_s: float
    ratio: float
    min_errors: float
    for_s: float
    horizon_s: float
    slow_edge_ns: int
    slow_ratio: float
    interval_s: float = 30.0
    window_s: float = 120.0
    keep_firing_s: float = 600.0
    baseline_factor: float = 3.0
    baseline_s: float = 21600.0
    baseline_offset_s: float = 600.0
    status: str = "unproven"
    reason: str = "not yet judged on later time"
    precision: float | None = None
    recall: float | None = None
    false_alarms_per_day: float | None = None
    lead_median_s: float | None = None
    train_precision: float | None = None
    learned_until_ns: int = 0

    @property
    def rule_id(self) -> str:
        """Short id, the same for the same pair and kind."""
        parts = (
            self.trigger_kind,
            self.trigger_service,
            self.trigger_operation,
            self.target_service,
            self.target_operation,
        )
        return blake2s(repr(parts).encode(), digest_size=5).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as plain values, with its id and its sentence."""
        return {"rule_id": self.rule_id, **asdict(self), "text": str(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WarningRule":
        """Return the rule that `to_dict` wrote.

        Parameters
        ----------
        values : mapping
            As written.

        Returns
        -------
        WarningRule
            An equal rule.

        Raises
        ------
        TypeError
            If a field is missing.
        """
        known = cls.__dataclass_fields__
        return cls(**{name: value for name, value in values.items() if name in known})

    def __str__(self) -> str:
        burst = _whose(self.trigger_service, self.trigger_operation)
        rise = _whose(self.target_service, self.target_operation)
        low, high = self.lag_s - 2 * self.lag_sigma_s, self.lag_s + 2 * self.lag_sigma_s
        text = (
            f"{_WORDS.get(self.trigger_kind, 'A burst')} in {burst} precedes a p99 rise in {rise} "
            f"by {_minutes(self.lag_s)} min (95 % CI {_minutes(self.lag_low_s)} to "
            f"{_minutes(self.lag_high_s)}; {_minutes(max(low, 0.0))} to {_minutes(high)} "
            "for a single event)"
        )
        if self.precision is not None:
            text += (
                f"; precision {self.precision:.2f}, recall {_figure(self.recall)}, "
                f"{_figure(self.false_alarms_per_day)} false alarms a day "
                "on time that it had not seen"
            )
        return text if self.status == "proven" else f"{text} [unproven: {self.reason}]"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}</p>"


def as_rules(rules: Iterable[WarningRule]) -> list[WarningRule]:
    """Return rules as a list.

    Parameters
    ----------
    rules : iterable of WarningRule
        From `derive_rules`.

    Returns
    -------
    list of WarningRule
        The same.

    Raises
    ------
    ParameterError
        If it is no iterable or an entry is no WarningRule.
    """
    given: Any = rules
    found: list[WarningRule] = list(given) if isinstance(given, Iterable) else [given]
    for one in found:
        if not isinstance(one, WarningRule):
            raise ParameterError(
                f"a {type(one).__name__} is no WarningRule; pass what derive_rules returned"
            )
    return found


def _whose(service: str | None, operation: str | None) -> str:
    name = html.plain(service, limit=120) or "(no service name)"
    return name if operation is None else f"{name} {html.plain(operation, limit=120)}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}".removesuffix(".0")


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"
