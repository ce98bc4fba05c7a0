import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real public exports; it stands beside the checkout and is never copied in."""
    folder = Path(os.environ.get("TRACELAB_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"public exports not found at {folder}; set TRACELAB_SHARED_DATA")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With TRACELAB_NO_SKIP set, a test that cannot run fails instead of skipping."""
    report = yield
    if os.environ.get("TRACELAB_NO_SKIP") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may skip: {report.longrepr}"
    return report
