"""Run a benchmark by name: ``python benchmarks NAME [options]``; without a name, list them."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Dispatch to ``benchmarks/NAME.py``; returns the exit status."""
    scripts = {p.stem: p for p in sorted(HERE.glob("*.py")) if not p.stem.startswith("_")}
    scripts.pop("measure", None)  # the shared measuring code, not a benchmark
    if len(sys.argv) < 2 or sys.argv[1] not in scripts:
        asked = f"no benchmark named {sys.argv[1]!r}; " if len(sys.argv) > 1 else ""
        print(f"{asked}benchmarks: {', '.join(scripts)}", file=sys.stderr)
        return 2
    name = sys.argv[1]
    sys.argv = [str(scripts[name]), *sys.argv[2:]]
    runpy.run_path(str(scripts[name]), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
