"""Build the lab, make its runs, check them: ``python -m tests.lab``."""

import argparse
import shutil
from pathlib import Path

from tests.lab import toolchain
from tests.lab.capture import capture
from tests.lab.overview import write_runs
from tests.lab.runs import BY_NAME, SEEDS
from tests.lab.truth import settle

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "data" / "lab"


def main() -> None:
    """Build everything, then make each run with each seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=toolchain.__doc__)
    parser.add_argument("--only", nargs="*", choices=list(BY_NAME), help="these runs only")
    parser.add_argument("--seed", choices=list(SEEDS), help="this seed only")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--no-build", action="store_true", help="use what was built before")
    parser.add_argument("--claims", action="store_true", help="measure docs/claims.md instead")
    options = parser.parse_args()
    if options.claims:
        toolchain.measure_claims()
        return
    if not options.no_build:
        toolchain.require_tools()
        toolchain.build_collector()
        toolchain.build_go()
        toolchain.build_python()
        toolchain.build_java()
        toolchain.build_node()
    for name in options.only or BY_NAME:
        for seed in [options.seed] if options.seed else SEEDS:
            folder = options.out / f"{name}-{seed}"
            facts = capture(BY_NAME[name], seed, folder)
            print(settle(BY_NAME[name], seed, folder, facts))
            shutil.rmtree(facts)
    write_runs(options.out)


if __name__ == "__main__":
    main()
