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
