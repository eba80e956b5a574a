"""`make bench`: every benchmark beside this file, one JSON object a line: name, value, unit, against."""

import json
import sys
from importlib import import_module
from pathlib import Path


def main(wanted: list[str]) -> None:
    """Run the benchmarks named in `wanted` (such as ``loop``), or all."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    chosen = [name for name in names if not wanted or name.removeprefix("bench_") in wanted]
    if not chosen:
        sys.exit(f"no benchmark is named {', '.join(wanted)}: there are {', '.join(n[6:] for n in names)}")
    for name in chosen:
        for result in import_module(f"tests.benchmarks.{name}").run():
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
