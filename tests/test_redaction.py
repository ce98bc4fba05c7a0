"""No secret leaves the process, harmless ids stay, and findings are the same."""

import base64
import json
import random
import string
import time
import uuid
from urllib.parse import quote

import polars as pl
import pytest

import tracelab as tl
from tracelab.cli import run
from tracelab.exceptions import ParameterError
from tracelab.export.redaction import Redactor

DICE = random.Random(11)


def letters(length, alphabet=string.ascii_letters + string.digits):
    return "".join(DICE.choice(alphabet) for _ in range(length))


def card():
    body = "4" + letters(14, string.digits)
    for last in string.digits:
        digits = [int(c) for c in reversed(body + last)]
        total = sum(digits[::2]) + sum(sum(divmod(2 * d, 10)) for d in digits[1::2])
        if total % 10 == 0:
            return body + last
    raise AssertionError


def jwt():
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    return f"{head}.{letters(40)}.{letters(43)}"


# How a secret is written in a log or a message, and what of it must not be seen again.
KINDS = {
    "bearer": lambda: ("request with Bearer {} refused", "x7" + letters(24)),
    "basic": lambda: ("Authorization: Basic {}", base64.b64encode(b"u:" + letters(12).encode())),
    "password": lambda: ("login failed, password={} rejected", letters(12)),
    "json": lambda: ('body was {{"password": "{}", "n": 1}}', letters(12)),
    "escaped": lambda: ('body was {{\\"clientSecret\\":\\"{}\\"}}', letters(12)),
    "cookie": lambda: ("Cookie: sid={}; theme=dark", letters(20)),
    "header": lambda: ("x-api-key: {}", letters(20) + "7"),
    "query": lambda: ("GET https://h.test/p?a=1&access_token={}&b=2 failed", letters(20)),
    "signature": lambda: ("https://h.test/o?X-Amz-Signature={}", letters(40, "0123456789abcdef")),
    "encoded": lambda: ("redirect=https%3A%2F%2Fh.test%3Ftoken%3D{}%26x", letters(20)),
    "userinfo": lambda: ("dial postgres://app:{}@db:5432/shop", letters(14)),
    "jwt": lambda: ("claims of {} expired", jwt()),
    "aws": lambda: ("key {} is not known", "AKIA" + letters(16, string.ascii_uppercase)),
    "github": lambda: ("clone with {}", "ghp_" + letters(36)),
    "stripe": lambda: ("charge by {}", "sk_live_" + letters(24)),
    "slack": lambda: ("post by {}", "xoxb-" + letters(12, string.digits) + "-" + letters(16)),
    "google": lambda: ("maps {}", "AIza" + letters(35)),
    "private": lambda: ("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", letters(60)),
    "mail": lambda: ("no such user {}", f"{letters(9).lower()}@mail.example.org"),
    "card": lambda: ("card {} was declined", card()),
}


def planted():
    for _ in range(10):
        for make in KINDS.values():
            text, secret = make()
            secret = secret.decode() if isinstance(secret, bytes) else secret
            yield text.format(secret), secret


SECRETS = list(planted())


def attribute(key, value):
    return {"key": key, "value": {"stringValue": value}}


def write_capture(path):
    """Each secret stands in one field of a span; all fields of all sorts are reached."""
    lines = []
    for i, (text, _) in enumerate(SECRETS):
        trace, child, root = f"{i + 1:032x}", f"{2 * i + 2:016x}", f"{2 * i + 1:016x}"
        at = 1_700_000_000_000_000_000 + i * 1_000_000_000
        stack = f"ValueError: {text}\n    at shop.Order.pay(Order.java:12)\nCaused by: E: {text}"
        exception = {
            "name": "exception",
            "timeUnixNano": str(at + 20),
            "attributes": [
                attribute("exception.type", "ValueError"),
                attribute("exception.message", text),
                attribute("exception.stacktrace", stack),
                attribute("note", text),
            ],
        }
        common = {"traceId": trace, "startTimeUnixNano": str(at)}
        spans = [
            {
                **common,
                "spanId": root,
                "name": f"GET {text}",
                "kind": 2,
                "endTimeUnixNano": str(at + 1_000_000),
                "attributes": [attribute("url.full", text), attribute("body", text)],
                # Half of the parents are missing, so that there are breaks to tell of.
                "parentSpanId": "ff" * 8 if i % 2 else "",
            },
            {
                **common,
                "spanId": child,
                "parentSpanId": root,
                "name": f"pay {text}",
                "kind": 1,
                "endTimeUnixNano": str(at + 900_000),
                "attributes": [attribute("note", text), attribute("error.type", "ValueError")],
                "status": {"code": 2, "message": text},
                "events": [exception],
            },
        ]
        resource = {"attributes": [attribute("service.name", "shop"), attribute("note", text)]}
        lines.append({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]})
        record = {
            "timeUnixNano": str(at),
            "body": {"stringValue": text},
            "traceId": trace,
            "spanId": child,
            "attributes": [attribute("exception.message", text), attribute("exception.type", "E")],
        }
        lines.append(
            {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}
        )
    path.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    path = tmp_path_factory.mktemp("planted") / "capture.jsonl"
    write_capture(path)
    return path


@pytest.fixture(scope="module")
def case(capture):
    return tl.investigate(tl.read_traces(capture))


def texts_of(folder):
    """Return all that is written: text as it stands, Parquet decoded."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            yield path.name, pl.read_parquet(path).write_ndjson() + str(path.read_bytes())
        elif path.is_file():
            yield path.name, path.read_text("utf-8")


def forms(secret):
    yield secret
    yield json.dumps(secret)[1:-1]
    yield quote(secret, safe="")
    # Base64 of a text within another depends on where it begins: its inner part for three offsets.
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode()).decode()
        yield encoded[4 : len(encoded) // 4 * 4 - 4]


def found_in(texts, secrets):
    return [
        (name, secret)
        for name, text in texts
        for secret in secrets
        if any(form in text for form in forms(secret) if len(form) > 6)
    ]


def test_no_planted_secret_stands_in_any_byte_that_is_written(case, tmp_path):
    assert len(SECRETS) == 200
    case.write(tmp_path)
    assert found_in(texts_of(tmp_path), [secret for _, secret in SECRETS]) == []


def test_the_search_for_secrets_finds_them_where_nothing_is_masked(case, tmp_path):
    case.write(tmp_path, redact="none")
    found = {secret for _, secret in found_in(texts_of(tmp_path), [s for _, s in SECRETS])}
    assert len(found) == 200


def test_no_planted_secret_is_printed(capture, tmp_path, capsys):
    secrets = [secret for _, secret in SECRETS]
    assert run(["investigate", str(capture), "-o", str(tmp_path)]) == 0
    for i in (1, 12, 13, 34):
        assert run(["trace", str(capture), f"{i:032x}"]) == 0
        assert run(["evidence", str(capture), f"{i:032x}", f"{2 * i:016x}"]) == 0
    assert found_in([("terminal", capsys.readouterr().out)], secrets) == []


def test_what_objects_show_of_themselves_is_masked(case):
    shown = repr(case) + case._repr_html_()
    assert found_in([("repr", shown)], [secret for _, secret in SECRETS]) == []


@pytest.mark.parametrize("mode", ["secrets", "values"])
def test_findings_and_counts_are_the_same(case, mode):
    masked = case.redact(mode)
    same = ["finding_id", "kind", "cause", "severity", "count", "denominator", "confidence"]
    for name in same:
        assert [getattr(f, name) for f in masked.findings] == [
            getattr(f, name) for f in case.findings
        ]
    assert masked.summary["breaks"] == case.summary["breaks"]
    assert masked.breaks.select("break_id", "trace_id").equals(
        case.breaks.select("break_id", "trace_id")
    )
    assert masked.exceptions["message"].n_unique() == case.exceptions["message"].n_unique()


def test_values_masks_every_message_and_attribute(case, tmp_path):
    masked = case.redact("values")
    messages = masked.exceptions["message"].drop_nulls()
    assert messages.len() > 0
    assert messages.str.contains(r"^\[masked [0-9a-f]{8}\]$").all()
    attributes = masked.exhibits.spans["attributes"].drop_nulls()
    assert not attributes.str.contains("ValueError").any()
    masked.write(tmp_path)
    assert not any("login failed" in text for _, text in texts_of(tmp_path) if "GET" not in text)


def test_equal_values_have_equal_masks_and_another_key_other_masks():
    one, other = Redactor(key=b"a"), Redactor(key=b"b")
    mask = one.text("password=hunter2").removeprefix("password=")
    assert mask in one.text("pwd: hunter2")
    assert other.text("password=hunter2") != one.text("password=hunter2")


def test_what_is_masked_is_not_masked_again():
    redactor = Redactor()
    for text, _ in SECRETS:
        once = redactor.text(text)
        assert redactor.text(once) == once


def harmless():
    for i in range(600):
        yield str(uuid.UUID(int=DICE.getrandbits(128)))
        yield f"trace {DICE.getrandbits(128):032x} span {DICE.getrandbits(64):016x}"
        yield f"sha256:{DICE.getrandbits(256):064x}"
        yield f"v{i % 9}.{i % 31}.{i}-rc.{i % 5}+{DICE.getrandbits(28):07x}"
        yield f"checkout-{letters(9, string.hexdigits.lower())}-{letters(5).lower()}"
        yield f"order {DICE.randrange(10**8, 10**16)} of customer {DICE.randrange(10**6)}"
        yield f"golang.org/x/net@v0.{i}.0/http2/server.go:{i}"
        yield f"AuthService.CheckToken took {i} ms, input_tokens={i}, retry {i} of 5"
        yield f"GET /api/v1/token/{i}/items/{uuid.UUID(int=DICE.getrandbits(128))}"
        yield f"arn:aws:sqs:eu-central-1:{letters(12, string.digits)}:orders-{i}"
        yield f"{1_700_000_000_000_000_000 + DICE.randrange(10**17)}"
        yield f"<shop.basic.Handler object at 0x{DICE.getrandbits(47):012x}> design=blue"


def test_at_most_one_in_a_hundred_harmless_ids_is_masked():
    redactor = Redactor()
    masked = [text for text in harmless() if redactor.text(text) != text]
    assert len(masked) <= 72, masked[:20]


@pytest.mark.parametrize(
    "text",
    [
        "invalid token: expired",
        "bearer authentication failed",
        "signature mismatch",
        "the password was wrong",
        "password=null",
        "unauthorized: token is missing",
    ],
)
def test_a_sentence_about_secrets_is_no_secret(text):
    assert Redactor().text(text) == text


def test_an_unknown_way_of_masking_says_what_to_choose(case, tmp_path):
    with pytest.raises(ParameterError, match="choose secrets, values or none"):
        case.write(tmp_path, redact="some")


def test_masking_costs_little_beside_the_investigation():
    traces = tl.synthesize_traces(seed=2, traces=3000)
    begun = time.process_time()
    case = tl.investigate(traces)
    between = time.process_time()
    case.redact()
    assert time.process_time() - between < 0.2 * (between - begun)
