"""Secrets in foreign text, masked where a case leaves the process.

What looks like a credential is told by its shape (a JWT, a cloud key, an e-mail address) or by
the name before it (``password=``, ``"authorization": …``), never by its entropy alone: trace ids,
UUIDs and digests have as much of it. Equal values get equal masks within a case.
"""

import hashlib
import hmac
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final, Literal

import polars as pl

from tracelab import html
from tracelab.exceptions import ParameterError
from tracelab.traceset import TraceSet

Redaction = Literal["secrets", "values", "none"]

REDACTIONS: Final = ("secrets", "values", "none")
KEY_VARIABLE: Final = "TRACELAB_REDACT_KEY"

_MASK: Final = re.compile(r"\[masked [0-9a-f]{8}\]")
_VALUE_COLUMNS: Final = frozenset(
    (
        *("message", "child_message", "parent_message", "status_message"),
        *("exception_message", "exception_stacktrace", "body"),
    )
)
_JSON_COLUMNS: Final = frozenset(("attributes", "resource_attributes", "scope_attributes"))

# Names whose value is secret. Long ones may end a longer name (accessToken, db_password); short
# ones must stand alone or after a separator (`sig`, not `design`).
_SECRET_NAME: Final = (
    r"(?:[\w.\-]*(?:passw(?:or)?d|passphrase|passwort|secret|token|api[-_.]?key|access[-_.]?key"
    r"|private[-_.]?key|secret[-_.]?key|account[-_.]?key|access[-_.]?key[-_.]?id|authorization"
    r"|cookie|session[-_.]?id|credentials?|signature)"
    r"|(?:[\w.\-]*[._\-])?(?:pwd|auth|sig|jwt|sessid|phpsessid|jsessionid|sid|csrf|xsrf|googleaccessid))"
)
_NAME: Final = re.compile(rf"(?i)^{_SECRET_NAME}$")
_HEADER: Final = re.compile(
    r"(?im)\b((?:proxy-)?authorization|(?:set-)?cookie)(\\*[\"']?\s*[:=]\s*)"
    r"(\\*[\"']?)(?![\s\[{\\])([^\r\n\"']+)"
)
_NAMED: Final = re.compile(
    rf"(?i)(?<![\w])({_SECRET_NAME})(\\*[\"']?\s*(?:=>|=|%3D|:)(?!\s*\[masked)\s*\[?\s*)(?!\[masked|\()"
    r"(?:(\\*[\"'])(.*?)\3|((?:(?!%26)[^\s&;,\"'<>(){}\[\]|])+))",
    re.DOTALL,
)
_SAID: Final = re.compile(
    r"(?i)\b(password|passphrase|secret|api key|token)(\s+(?:(?:is|was|of)\s+)?)(?!\[masked)"
    r"(?:([\"'])(.+?)\3|(?<=s |f )([^\s\"',;]+))"
)
_SCHEME: Final = re.compile(
    r"(?i)\b(bearer|basic|digest|apikey|token)((?:\s|%20|\+)+)([A-Za-z0-9._~+/=%\-]{8,})"
)
_SHAPES: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|\beyJ[\w\-]{6,}(?:\.[\w\-]*){0,4}"
    r"|\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA)[A-Z0-9]{8,}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{8,}|\bgithub_pat_\w{8,}|\bglpat-[\w\-]{8,}|\bxox[abeoprs]-[\w\-]{8,}"
    r"|\b(?:sk|rk|pk)_(?:live|test)_\w{8,}|\bsk-[A-Za-z0-9_\-]{16,}|\bAIza[\w\-]{20,}"
    r"|\bya29\.[\w\-]{8,}|\bnpm_[A-Za-z0-9]{20,}|\bpypi-[\w\-]{20,}|\bSG\.[\w\-]{12,}\.[\w\-]{12,}"
    r"|\bhv[sb]\.[\w\-]{12,}|\bdop_v1_[0-9a-f]{16,}|\bshp(?:at|ss|ca)_\w{12,}|\bwhsec_\w{12,}"
    r"|(?<=hooks\.slack\.com/services/)[\w/]+",
    re.DOTALL,
)
_USERINFO: Final = re.compile(r"(?i)((?::|%3A)(?:/|%2F){2})([^\s/@\"'<>?#]+)(?=@|%40)")
_MAIL: Final = re.compile(
    r"(?<![\w.+\-])[\w.+\-]+(?:@|%40)(?!v?\d+\.)(?:[A-Za-z0-9\-]+\.)+[A-Za-z]{2,}\b"
)
_CARD: Final = re.compile(
    r"(?<![\w.\-])(?:(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6011|65\d\d|64[4-9]\d|35[2-8]\d)([ \-]?)"
    r"\d{4}\1\d{4}\1\d{4}|3[47]\d\d([ \-]?)\d{6}\2\d{5})(?![\w\-]|\.\d)"
)
# Whatever one of the patterns above can match holds one of these: the quick look over all rows.
_SUSPECT: Final = (
    r"(?i)passw|passphrase|pwd|secret|token|api[-_. ]?key|key|auth|cookie|session|credential|sig"
    r"|jwt|sessid|sid|csrf|xsrf|googleaccessid|bearer|basic|digest|eyj|akia|asia|aroa|aida|agpa"
    r"|anpa|gh[pousr]_|github_pat|glpat|xox|[srp]k_|sk-|aiza|ya29|npm_|pypi-|sg\.|hv[sb]\.|dop_v1"
    r"|shp|whsec|hooks\.slack|@|%40|\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}|\d{4}[ -]?\d{6}[ -]?\d{5}"
)
_HARMLESS: Final = frozenset(("null", "none", "nil", "true", "false", "undefined", "***", "-", ""))


class Redactor:
    """Masks foreign text; one per case.

    Parameters
    ----------
    mode : {"secrets", "values", "none"}
        What is masked: what looks like a secret, also every attribute value and message, nothing.
    key : bytes
        Key of the hash from which masks are made.
    """

    def __init__(self, mode: Redaction = "secrets", *, key: bytes = b"") -> None:
        if mode not in REDACTIONS:
            raise ParameterError(f"redact={mode!r}: choose secrets, values or none")
        self.mode = mode
        self._key = key or hashlib.sha256(os.environ.get(KEY_VARIABLE, "").encode()).digest()
        self._known: dict[str, str] = {}

    def mask(self, value: str) -> str:
        """Return the mask of a value: the same for the same value and key."""
        digest = hmac.new(self._key, value.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return f"[masked {digest.hexdigest()[:8]}]"

    def text(self, text: str) -> str:
        """Return a text with what looks like a secret masked."""
        if self.mode == "none":
            return text
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = self._masked(text)
            # Exemplars carry the beginning of a message; a secret may be cut there.
            self._known.setdefault(text[: html.MAX_TEXT], known[: html.MAX_TEXT])
        return known

    def frame(self, table: pl.DataFrame) -> pl.DataFrame:
        """Return a table with its texts masked; columns, rows and order stay."""
        if self.mode == "none":
            return table
        changed = []
        for name, dtype in table.schema.items():
            if dtype == pl.String:
                texts = table[name]
            elif dtype == pl.List(pl.String):
                texts = table[name].explode()
            else:
                continue
            mapping = self._mapping(texts, self._how(name))
            if mapping:
                old, new = pl.Series(list(mapping)), pl.Series(list(mapping.values()))
                column = pl.col(name)
                changed.append(
                    column.replace(old, new)
                    if dtype == pl.String
                    else column.list.eval(pl.element().replace(old, new))
                )
        return table.with_columns(changed) if changed else table

    def document(self, value: Any) -> Any:
        """Return a JSON-like value, or a frozen dataclass, with every text in it masked."""
        if self.mode == "none":
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(name) if isinstance(name, str) else name: self._field(name, item)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return type(value)(self.document(item) for item in value)
        if is_dataclass(value) and not isinstance(value, type):
            parts = {
                field.name: self.document(getattr(value, field.name))
                for field in fields(value)
                if field.init
            }
            return replace(value, **parts)
        return value

    def _field(self, name: object, item: Any) -> Any:
        if self.mode == "values" and name in _VALUE_COLUMNS and isinstance(item, str) and item:
            return item if _MASK.fullmatch(item) else self.mask(item)
        return self.document(item)

    def _how(self, column: str) -> Callable[[str], str]:
        if column in _JSON_COLUMNS:
            return self._json
        if self.mode == "values" and column in _VALUE_COLUMNS:
            return lambda text: text if not text or _MASK.fullmatch(text) else self.mask(text)
        return self.text

    def _mapping(self, texts: pl.Series, how: Callable[[str], str]) -> dict[str, str]:
        """Map each distinct text that changes to what it becomes."""
        distinct = texts.drop_nulls().unique()
        if self.mode == "secrets":
            distinct = distinct.filter(distinct.str.contains(_SUSPECT))
        return {text: new for text in distinct if (new := how(text)) != text}

    def _json(self, text: str) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self._plain(text)
        masked = self._value(value)
        if masked == value:
            return text
        return json.dumps(masked, ensure_ascii=False, separators=(",", ":"))

    def _value(self, value: Any, *, secret: bool = False) -> Any:
        """Mask the leaves of an attribute's value; the name above may make all of them secret."""
        if isinstance(value, dict):
            return {
                self.text(name): self._value(item, secret=secret or bool(_NAME.match(name)))
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [self._value(item, secret=secret) for item in value]
        if value is None or isinstance(value, bool):
            return value
        text = value if isinstance(value, str) else json.dumps(value)
        if self.mode == "values" or (secret and text.lower() not in _HARMLESS):
            return text if _MASK.fullmatch(text) else self.mask(text)
        masked = self.text(text)
        return masked if masked != text else value

    def _masked(self, text: str) -> str:
        return self._json(text) if text[:1] in ("{", "[") else self._plain(text)

    def _plain(self, text: str) -> str:
        text = _SHAPES.sub(lambda m: self.mask(m[0]), text)
        text = _HEADER.sub(self._header, text)
        text = _NAMED.sub(self._named, text)
        text = _SAID.sub(self._said, text)
        text = _SCHEME.sub(self._scheme, text)
        text = _USERINFO.sub(
            lambda m: m[0] if _MASK.search(m[2]) else f"{m[1]}{self.mask(m[2])}", text
        )
        text = _MAIL.sub(lambda m: self.mask(m[0]), text)
        return _CARD.sub(lambda m: self.mask(m[0]) if _luhn(m[0]) else m[0], text)

    def _header(self, match: re.Match[str]) -> str:
        value = match[4].rstrip("\\ ")
        if _MASK.fullmatch(value):
            return match[0]
        return f"{match[1]}{match[2]}{match[3]}{self.mask(value)}{match[4][len(value) :]}"

    def _named(self, match: re.Match[str]) -> str:
        name, sign, quote, quoted, bare = match.groups()
        value = quoted if quote else bare
        if _MASK.search(value) or value.lower() in _HARMLESS:
            return match[0]
        # "invalid token: expired" is a sentence; "password: hunter" is a password.
        sentence = re.fullmatch(r"[A-Za-z]{1,15}[.!?]?", value) and ":" in sign
        if sentence and not quote and not re.search(r"(?i)pass|secret|pwd", name):
            return match[0]
        return f"{name}{sign}{quote or ''}{self.mask(value)}{quote or ''}"

    def _said(self, match: re.Match[str]) -> str:
        what, sign, quote, quoted, bare = match.groups()
        if quote:
            return f"{what}{sign}{quote}{self.mask(quoted)}{quote}"
        if re.fullmatch(r"[A-Za-z]{1,15}[.!?]?", bare):
            return match[0]
        return f"{what}{sign}{self.mask(bare)}"

    def _scheme(self, match: re.Match[str]) -> str:
        if re.fullmatch(r"[A-Za-z]?[a-z\-]+[.]?", match[3]):
            return match[0]
        return f"{match[1]}{match[2]}{self.mask(match[3])}"


def case_key(tables: Iterable[pl.DataFrame]) -> bytes:
    """Return a key for the masks of a case, the same whenever the same capture is examined.

    It is made of all suspicious texts together, which only who has the capture knows; a key of
    one's own in the environment variable ``TRACELAB_REDACT_KEY`` makes it secret in any case.

    Parameters
    ----------
    tables : iterable of pl.DataFrame
        The tables of the case before anything is masked.

    Returns
    -------
    bytes
        32 bytes.
    """
    own = os.environ.get(KEY_VARIABLE)
    digest = hmac.new((own or "").encode(), b"tracelab", hashlib.sha256)
    if own:
        return digest.digest()
    suspects: set[str] = set()
    for table in tables:
        for name, dtype in table.schema.items():
            if dtype == pl.String:
                distinct = table[name].drop_nulls().unique()
                suspects.update(distinct.filter(distinct.str.contains(_SUSPECT)))
    for text in sorted(suspects):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\x00")
    return digest.digest()


def redact_traces(traces: TraceSet, redactor: Redactor) -> TraceSet:
    """Return a capture with the texts of its spans, events and links masked.

    Parameters
    ----------
    traces : TraceSet
        What a picture or a tree is drawn from.
    redactor : Redactor
        Says what is masked, and how.

    Returns
    -------
    TraceSet
        The same rows.
    """
    names = ("spans", "events", "links", "logs", "metrics", "rejects")
    return traces.with_tables(
        **{name: redactor.frame(getattr(traces, name)) for name in names if hasattr(traces, name)}
    )


def _luhn(text: str) -> bool:
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
