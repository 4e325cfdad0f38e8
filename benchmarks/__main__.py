"""Run a benchmark by name: ``python benchmarks NAME [options]``; without a name, list them."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Dispatch to ``benchmarks/NAME.py``; returns the exit status."""
    scripts = {p.stem: p for p in sorted(HERE.glob("*.py")) if not p.stem.startswith("_")}
    scripts.pop("measure", None)  # the shared measuring code, not a benchmark
    if len(sys.argv) < 2:
        print(f"benchmarks: {', '.join(scripts)}")
        return 0
    if sys.argv[1] not in scripts:
        print(
            f"no benchmark named {sys.argv[1]!r}; benchmarks: {', '.join(scripts)}", file=sys.stderr
        )
        return 2
    name = sys.argv[1]
    sys.argv = [str(scripts[name]), *sys.argv[2:]]
    runpy.run_path(str(scripts[name]), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
