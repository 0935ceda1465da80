"""`skipalign --help` as a whole process, alternating with a bare start of Python.

Promise: under 0.3 s.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from skipalign.origin import write_result

PAIRS = 15
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "skipalign --help": [sys.executable, "-m", "skipalign", "--help"],
}


def main() -> None:
    """Print and keep the seconds of both, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(PAIRS + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, found in seconds.items():
        kept = np.array(found[1:])  # the first warms the file cache
        row = {"command": name, "median_s": round(float(np.median(kept)), 3)}
        row |= {"low_s": round(float(kept.min()), 3), "high_s": round(float(kept.max()), 3)}
        rows.append(row)
        print(f"{name:20s} {row['median_s']:.3f} s [{row['low_s']:.3f}, {row['high_s']:.3f}]")
    out = Path(__file__).parent / "results/help.json"
    measured = ("median_s", "low_s", "high_s")
    write_result(
        out, {"pairs": PAIRS, "rows": rows}, seeds=(), data={}, exact=(), measured=measured
    )


if __name__ == "__main__":
    main()
