"""Build what the lab runs: the Collector, the Go programs, the Java and Node services.

Needs Go 1.26, Python 3.11 with pip, a JDK from 17 on with Maven (virtual threads are used from 21
on), Node 20 with npm, and their public registries. Everything goes to a cache folder outside the
repository: ``$XDG_CACHE_HOME/tracelab``, which stack traces in the captures name.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILDER_VERSION = "v0.161.0"
AGENT = "io.opentelemetry.javaagent:opentelemetry-javaagent:2.33.1"
API = tuple(
    f"io.opentelemetry:opentelemetry-{part}:1.68.0" for part in ("api", "context", "common")
)
PYTHON_PACKAGES = (
    "fastapi==0.165.0",
    "uvicorn==0.54.0",
    "httpx==0.28.1",
    "opentelemetry-sdk==1.45.2",
    "opentelemetry-exporter-otlp-proto-http==1.45.2",
    "opentelemetry-exporter-otlp-proto-grpc==1.45.2",
    "opentelemetry-instrumentation-fastapi==0.66b2",
    "opentelemetry-instrumentation-httpx==0.66b2",
)
GENERATIONS = ("gen121", "gen124", "newest")


def cache() -> Path:
    """Give the folder for builds."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tracelab" / "lab"


def require_tools() -> None:
    """Stop with one line if a tool is missing."""
    missing = [
        tool for tool in ("go", "java", "javac", "mvn", "node", "npm") if not shutil.which(tool)
    ]
    if missing:
        raise SystemExit(f"the lab needs {', '.join(missing)} on the path; install them and retry")


def _call(*command: str | Path, cwd: Path | None = None, **environment: str) -> None:
    subprocess.run(
        ["nice", "-n", "10", *map(str, command)],
        cwd=cwd,
        check=True,
        env={**os.environ, **environment},
    )


def build_collector() -> Path:
    """Build the Collector from `collector/builder.yaml`."""
    target = cache() / "collector"
    binary = target / "otelcol-lab"
    if not binary.exists():
        module = f"go.opentelemetry.io/collector/cmd/builder@{BUILDER_VERSION}"
        _call("go", "install", module, GOBIN=str(cache() / "bin"))
        recipe = (HERE / "collector" / "builder.yaml").read_text()
        placed = cache() / "builder.yaml"
        placed.write_text(recipe.replace("dist:", f"dist:\n  output_path: {target}", 1))
        _call(cache() / "bin" / "builder", "--config", placed)
    return binary


def build_go() -> None:
    """Build the Go service against each generation of the SDK, and the proxy."""
    for generation in GENERATIONS:
        folder = cache() / "go" / generation
        folder.mkdir(parents=True, exist_ok=True)
        for source in (HERE / "go").glob("*.go"):
            shutil.copy(source, folder)
        pinned = HERE / "go" / f"{generation}.mod"
        if not (folder / "go.mod").exists():
            shutil.copy(pinned, folder / "go.mod")
            _call("go", "mod", "tidy", cwd=folder)
        _call(
            "go", "build", "-trimpath", "-o", cache() / "bin" / f"lab-{generation}", ".", cwd=folder
        )
    _call(
        "go",
        "build",
        "-trimpath",
        "-o",
        cache() / "bin" / "proxy",
        HERE / "go" / "proxy" / "main.go",
    )


def build_python() -> Path:
    """Make an environment of its own for the Python services, and place them beside it.

    They run from the cache folder, so that stack traces in the exports name no checkout.
    """
    shutil.copytree(HERE / "python", cache() / "python", dirs_exist_ok=True)
    folder = cache() / "venv"
    python = folder / "bin" / "python"
    if not python.exists():
        _call(sys.executable, "-m", "venv", folder)
    known = folder / "packages.txt"
    if not known.exists() or known.read_text().split() != list(PYTHON_PACKAGES):
        _call(python, "-m", "pip", "install", "-q", *PYTHON_PACKAGES)
        known.write_text("\n".join(PYTHON_PACKAGES))
    return python


def build_java() -> None:
    """Fetch the OpenTelemetry Java agent and compile the Java service."""
    folder = cache() / "java"
    folder.mkdir(parents=True, exist_ok=True)
    for artifact in (AGENT, *API):
        name = f"{artifact.split(':')[1]}-{artifact.split(':')[2]}.jar"
        if not (folder / name).exists():
            goal = "dependency:copy"
            _call(
                "mvn",
                "-q",
                goal,
                f"-Dartifact={artifact}",
                f"-DoutputDirectory={folder}",
                cwd=folder,
            )
    jars = ":".join(str(jar) for jar in folder.glob("opentelemetry-[ac]*.jar"))
    sources = sorted(str(path) for path in (HERE / "java").glob("*.java"))
    _call("javac", "-cp", jars, "-d", folder / "classes", *sources)


def build_node() -> None:
    """Install the Node SDK beside a copy of the Node service."""
    folder = cache() / "node"
    folder.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "node").iterdir():
        shutil.copy(source, folder)
    if not (folder / "node_modules").exists():
        _call(
            "npm", "install", "--silent", "--no-package-lock", "--no-audit", "--no-fund", cwd=folder
        )


def measure_claims() -> None:
    """Print what each generation of Go's SDK does with the claims of `docs/claims.md`."""
    for generation in GENERATIONS:
        folder = cache() / "claims" / generation
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "claims" / "claims_test.go", folder)
        if not (folder / "go.mod").exists():
            shutil.copy(HERE / "go" / f"{generation}.mod", folder / "go.mod")
            _call("go", "mod", "tidy", cwd=folder)
        _call("go", "test", "-v", "-bench", "ErrorRate", "-benchtime", "20000x", ".", cwd=folder)
