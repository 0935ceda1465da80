"""The report of 100 runs opened in headless Chromium: time until loaded and painted, size.

Promise: under 2 seconds. Each opening is a fresh page of one browser; the file comes from disk.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from skipalign.origin import write_result
from skipalign.report import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from made_browser import CHROMIUM, MISSING, Browser
from made_runs import METHODS, make_run

RUNS, OPENINGS = 100, 10
WIDTHS = {"phone": 390, "desktop": 1280}
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"


def main() -> None:
    """Print and keep the seconds of each width."""
    if CHROMIUM is None:
        raise SystemExit(MISSING)
    with tempfile.TemporaryDirectory() as name, Browser() as browser:
        folder = Path(name)
        started = time.perf_counter()
        page = made(folder)
        written = time.perf_counter() - started
        rows = [opened(browser, page, device) for device in WIDTHS]
        size = {
            "runs": RUNS,
            "bytes": page.stat().st_size,
            "elements": browser.run("document.querySelectorAll('*').length"),
            "write_report_s": round(written, 2),
            "browser": browser.ask("Browser.getVersion")["product"],
        }
    for row in rows:
        print(
            f"{row['device']:8s} {row['median_s']:.2f} s [{row['low_s']:.2f}, {row['high_s']:.2f}]"
        )
    print(size)
    write_result(
        Path(__file__).parent / "results/report-page.json",
        {"openings": OPENINGS, "rows": rows, **size},
        seeds=(0, 1, 2),
        data={},
        exact=("elements",),
        measured=("median_s", "low_s", "high_s", "loaded_median_s", "write_report_s"),
    )


def made(folder: Path) -> Path:
    """Write 100 runs of one method and three seeds each, and their page."""
    kinds = [make_run(folder / name, methods=(name,)) for name in METHODS]
    runs = [shutil.copytree(kinds[n % 3], folder / f"run-{n:03}") for n in range(RUNS)]
    return write_report(runs, folder / "page.html")


def opened(browser: Browser, page: Path, device: str) -> dict[str, Any]:
    """Return the seconds from asking for the page to two frames painted after its load."""
    painted: list[float] = []
    loaded: list[float] = []
    for _ in range(OPENINGS + 1):
        browser.open(Path("/dev/null"))
        started = time.perf_counter()
        browser.open(page, width=WIDTHS[device])
        painted.append(time.perf_counter() - started)
        loaded.append(browser.run(LOADED))
    kept = np.array(painted[1:])  # the first warms the file cache
    return {
        "device": device,
        "median_s": round(float(np.median(kept)), 3),
        "low_s": round(float(kept.min()), 3),
        "high_s": round(float(kept.max()), 3),
        "loaded_median_s": round(float(np.median(loaded[1:])), 3),
    }


if __name__ == "__main__":
    main()
