"""Exceptions as each SDK writes them: type, message, stack text."""

from typing import Final, NamedTuple

from tracelab.synth.topology import NOUNS


class Thrown(NamedTuple):
    """An exception with its causes: (type, message) from the outermost to the root."""

    chain: tuple[tuple[str, str], ...]

    @property
    def type(self) -> str:
        """Type of the outermost."""
        return self.chain[0][0]

    @property
    def message(self) -> str:
        """Message of the outermost."""
        return self.chain[0][1]


_ORIGINS: Final[dict[str, tuple[str, ...]]] = {
    "python": ("ConnectionError", "asyncpg.exceptions.DeadlockDetectedError", "KeyError"),
    "java": (
        "java.net.ConnectException",
        "java.sql.SQLTransientException",
        "java.lang.IllegalStateException",
    ),
    "go": ("*net.OpError", "*errors.errorString", "*pq.Error"),
    "nodejs": ("ECONNREFUSED", "TypeError", "MongoServerError"),
    "dotnet": ("System.TimeoutException", "Npgsql.PostgresException"),
    "rust": ("", ""),
}
_WRAPPERS: Final = {
    "python": "app.errors.ServiceError",
    "java": "com.shop.ServiceException",
    "go": "*fmt.wrapError",
    "nodejs": "ServiceError",
    "dotnet": "Shop.ServiceException",
    "rust": "",
}
_PLAIN: Final = {
    "python": "RuntimeError",
    "java": "java.lang.RuntimeException",
    "go": "*errors.errorString",
    "nodejs": "Error",
    "dotnet": "System.Exception",
    "rust": "",
}
_OTHERS: Final = {
    "python": "app.errors.Unavailable",
    "java": "com.shop.UnavailableException",
    "go": "*shop.unavailableError",
    "nodejs": "UnavailableError",
    "dotnet": "Shop.UnavailableException",
    "rust": "",
}
_MESSAGES: Final = (
    "dial tcp 10.0.3.{n}:5432: connection refused",
    "deadlock detected while updating row {n}",
    "no such key {n} in the index",
    "deadline of {n} ms exceeded",
)
CHAINED: Final = ("python", "java", "dotnet", "go")
"""Languages whose record tells that an exception wraps another (Go: by its type)."""


def origin(language: str, draw: int) -> Thrown:
    """Make an exception that nothing caused."""
    types = _ORIGINS.get(language, _ORIGINS["python"])
    message = _MESSAGES[draw % len(_MESSAGES)].format(n=draw % 251)
    return Thrown(((types[draw // 7 % len(types)], message),))


def wrap(language: str, inner: Thrown, draw: int) -> Thrown:
    """Wrap an exception so that its cause stays known."""
    told = f"load {NOUNS[draw % len(NOUNS)]} failed"
    if language == "go":  # %w: the text of the cause is part of the text
        told = f"load {NOUNS[draw % len(NOUNS)]}: {inner.message}"
    return Thrown(((_WRAPPERS.get(language, "ServiceError"), told), *inner.chain))


def flatten_text(language: str, inner: Thrown, draw: int) -> Thrown:
    """Put an exception's text into a new one that has no cause."""
    told = f"load {NOUNS[draw % len(NOUNS)]}: {inner.message}"
    return Thrown(((_PLAIN.get(language, "Error"), told),))


def replace(language: str, draw: int) -> Thrown:
    """Throw something else, from nothing."""
    told = f"the {NOUNS[draw % len(NOUNS)]} service cannot answer now"
    return Thrown(((_OTHERS.get(language, "UnavailableError"), told),))


def stack_text(language: str, thrown: Thrown, draw: int) -> str | None:
    """Render the stack as the language's SDK records it; None where it records none."""
    if language == "python":
        parts = [
            f'Traceback (most recent call last):\n  File "/app/{_file(draw, depth)}.py", '
            f"line {11 + draw % 80}, in step_{depth}\n    run()\n{kind}: {message}\n"
            for depth, (kind, message) in enumerate(thrown.chain)
        ]
        join = "\nThe above exception was the direct cause of the following exception:\n\n"
        return join.join(reversed(parts))
    if language == "java":
        return "Caused by: ".join(
            f"{kind}: {message}\n\tat com.shop.Step{depth}.run(Step{depth}.java:{20 + draw % 60})\n"
            f"\tat com.shop.Main.main(Main.java:12)\n"
            for depth, (kind, message) in enumerate(thrown.chain)
        )
    if language == "dotnet":
        heads = "\n ---> ".join(f"{kind}: {message}" for kind, message in thrown.chain)
        frames = "\n   --- End of inner exception stack trace ---\n".join(
            f"   at Shop.Step{depth}.Run() in /src/Step{depth}.cs:line {20 + draw % 60}"
            for depth in reversed(range(len(thrown.chain)))
        )
        return f"{heads}\n{frames}"
    if language == "nodejs":
        kind = "Error" if thrown.type.isupper() else thrown.type
        return f"{kind}: {thrown.message}\n    at run (/app/{_file(draw, 0)}.js:{9 + draw % 70}:11)"
    if language == "go" and draw % 3 == 0:
        return (
            f"goroutine {17 + draw % 400} [running]:\nmain.step(0xc0000{draw % 9}4000)\n"
            f"\t/app/{_file(draw, 0)}.go:{9 + draw % 70} +0x1d\n"
        )
    return None


def _file(draw: int, depth: int) -> str:
    return NOUNS[(draw + depth) % len(NOUNS)]
