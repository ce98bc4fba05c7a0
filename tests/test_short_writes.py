"""Writes that take only a part of what they were given: by the system's limit, and always."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab.traceset import TABLES

SAMPLE = str(ROOT / "data" / "checkout")

LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from tracelab.cli import main
main()
"""

HALVES = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>
static unsigned long halved;
ssize_t write(int file, const void *data, size_t size) {
    static ssize_t (*whole)(int, const void *, size_t);
    struct stat state;
    if (!whole) whole = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    int kept = size > 1 && !fstat(file, &state) && S_ISREG(state.st_mode);
    halved += kept;
    return whole(file, data, kept ? size / 2 : size);
}
__attribute__((destructor)) static void tell(void) {
    static const char done[] = "wrote halves\n";
    if (halved) { ssize_t told = write(2, done, sizeof done - 1); (void)told; }
}
"""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs limits and preloading as Linux has them"
)


def assert_same_store(path, expected):
    store = tl.TraceStore(path)
    assert store.verify().height == 0
    found = store.read()
    for table in TABLES:
        assert_frame_equal(getattr(found, table), getattr(expected, table))


@pytest.mark.parametrize("limit", [50, 300, 5_000, 60_000])
def test_a_write_cut_short_by_a_limit_keeps_nothing_of_the_source(tmp_path, limit):
    def attempt(*command):
        return subprocess.run(
            [sys.executable, "-c", LIMITED, str(limit), *command],
            capture_output=True,
            text=True,
            check=False,
        )

    store = str(tmp_path / "store")
    done = attempt("ingest", SAMPLE, "--store", store)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    assert not list(Path(store).rglob("*.parquet"))
    assert not list(Path(store).rglob("*.tmp"))
    tl.TraceStore(store).ingest(SAMPLE)
    assert_same_store(store, tl.read_traces(SAMPLE))

    out = tmp_path / "out"
    done = attempt("investigate", SAMPLE, "-o", str(out))
    assert (done.returncode, "File too large" in done.stderr) == (2, True)
    assert not (out / "manifest.json").exists()
    tl.investigate(tl.read_traces(SAMPLE)).write(out)
    assert tl.verify_case(out).height == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (Debian: gcc)")
def test_writes_that_always_take_half_lose_no_byte(tmp_path):
    (tmp_path / "halves.c").write_text(HALVES)
    library = tmp_path / "halves.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "halves.c", "-ldl"], check=True
    )

    def halved(*command):
        return subprocess.run(
            [sys.executable, "-m", "tracelab", *map(str, command)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"LD_PRELOAD": str(library)},
        ).stderr

    assert "wrote halves" in halved("ingest", SAMPLE, "--store", tmp_path / "store")
    assert_same_store(tmp_path / "store", tl.read_traces(SAMPLE))
    halved("store", "compact", tmp_path / "store")
    assert_same_store(tmp_path / "store", tl.read_traces(SAMPLE))
    assert "wrote halves" in halved("investigate", SAMPLE, "-o", tmp_path / "halved")
    subprocess.run(
        [sys.executable, "-m", "tracelab", "investigate", SAMPLE, "-o", tmp_path / "whole"],
        capture_output=True,
        check=True,
    )
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            other = tmp_path / "halved" / path.relative_to(tmp_path / "whole")
            assert other.read_bytes() == path.read_bytes()
