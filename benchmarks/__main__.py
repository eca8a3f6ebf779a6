"""python -m benchmarks NAME [--json]"""

from __future__ import annotations

import json
import sys

from benchmarks import precision

BENCHMARKS = {"precision": precision.measure}


def main(arguments: list[str]) -> int:
    names = [argument for argument in arguments if argument != "--json"]
    if len(names) != 1 or names[0] not in BENCHMARKS:
        sys.stderr.write(f"usage: python -m benchmarks {{{','.join(BENCHMARKS)}}} [--json]\n")
        return 2
    figures = BENCHMARKS[names[0]]()
    if "--json" in arguments:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.writelines(f"{name:28} {value}\n" for name, value in figures.items())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
