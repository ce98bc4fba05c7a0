"""Planted truth: texts that a limit cut, and texts that have one length by nature."""

import hashlib
import json

import polars as pl
import pytest

from tests.building import Capture
from tracelab.structure import find_breaks


def select(columns: int, end: str = " from t where x = 'ü'") -> str:
    return "select " + ", ".join(f"column_{number}" for number in range(columns)) + end


def queries(texts: list[str], capture: Capture | None = None, service: str = "shop") -> Capture:
    capture = capture or Capture()
    for number, text in enumerate(texts, start=len(capture.spans) + 1):
        held = json.dumps({"db.query.text": text}, separators=(",", ":"))
        capture.span(number, 1, start=number, service=service, attributes=held)
    return capture


def stacks(texts: list[str]) -> Capture:
    capture = Capture()
    for number, text in enumerate(texts, start=1):
        capture.span(number, 1, start=number)
        capture.event(number, 1, exception_type="E", exception_stacktrace=text)
    return capture


def cut(capture: Capture) -> list[str]:
    found = find_breaks(capture.traces()).sort("time").filter(pl.col("severity") != "info")
    assert set(found["kind"]) <= {"truncated_value"}
    return found["trace_id"].to_list()


WHOLE = [select(number) for number in (20, 60, 90, 120)]


def test_one_statement_that_is_cut_at_a_limit_breaks_off_where_whole_ones_do_not_end():
    assert len(cut(queries([*WHOLE, *[select(400)[:2048]] * 12]))) == 12


def test_one_limit_cuts_the_attribute_of_a_service_that_has_nothing_else_to_compare():
    capture = queries([*WHOLE, *[select(400)[:2048]] * 12])
    assert len(cut(queries([select(400)[:2048]] * 2, capture, "stock"))) == 14


def test_one_statement_that_ends_as_the_others_do_is_whole_at_any_length():
    text = select(170)
    padded = "select " + "x" * (2048 - len(text)) + text[7:]
    assert len(padded) == 2048
    assert cut(queries([*WHOLE, *[padded] * 12])) == []


def test_one_statement_of_a_length_that_nobody_chooses_is_whole():
    assert cut(queries([*WHOLE, *[select(400)[:1789]] * 12])) == []


def test_hashes_and_texts_of_one_width_are_whole():
    hashes = [hashlib.sha512(bytes([number])).hexdigest() for number in range(40)]
    assert cut(queries([*hashes, "b" * 60, "c" * 70, "d" * 80])) == []
    widths = [f"https://shop/orders/{text[:36]}/items?page=1" for text in hashes]
    assert cut(queries([*widths, *[f"https://shop/{n:050d}"[: 50 + n] for n in range(4)]])) == []


PYTHON = (
    "Traceback (most recent call last):\n"
    '  File "/app/svc/handler.py", line 31, in run\n    return call(x)\n'
    '  File "/app/svc/db.py", line 12, in call\n    raise err\nRuntimeError: {}\n'
)
JAVA = (
    "java.lang.IllegalStateException: {}\n\tat com.shop.Cart.add(Cart.java:31)\n"
    "\tat com.shop.Cart.sum(Cart.java:77)\n\tat com.shop.Main.main(Main.java:5)\n"
)
NODE = "Error: {}\n    at add (/app/cart.js:31:7)\n    at /app/main.js:5:1\n    at div"
PYDANTIC = PYTHON.format("1 error\n  field required\n    see https://docs/errors").rstrip()


@pytest.mark.parametrize("text", [PYTHON, JAVA])
def test_stacks_that_all_break_off_within_a_frame_are_cut_at_whatever_length(text: str):
    assert len(cut(stacks([text.format("boom")[:100]] * 3))) == 3


@pytest.mark.parametrize("text", [PYTHON, JAVA, JAVA.rstrip(), NODE, PYDANTIC])
def test_equal_stacks_that_end_as_stacks_do_are_whole(text: str):
    assert cut(stacks([text.format("boom")] * 5)) == []


DOTNET = "Shop.Error: {}\n   at Shop.Step1.Run() in /src/Step1.cs:line {}\n   at Shop.Main() in /a.cs:line 5"


@pytest.mark.parametrize("text", [JAVA.rstrip(), DOTNET])
@pytest.mark.parametrize("severed", [True, False])
def test_stacks_of_a_common_length_are_cut_only_if_they_break_off_within_a_frame(
    text: str, severed: bool
):
    others = [text.format("x" * width, 7) for width in (1, 2, 5, 9)]
    room = 255 - len(text.format("", 71))
    wholes = [text.format(letter * room, 71) for letter in "abc"]
    cuts = [text.format(letter * (room + 5), 71)[:255] for letter in "abc"]
    assert all(len(each) == 255 for each in wholes + cuts)
    assert len(cut(stacks([*others, *(cuts if severed else wholes)]))) == (3 if severed else 0)
