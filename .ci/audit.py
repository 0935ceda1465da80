"""Ask for known vulnerabilities of the pinned packages: python .ci/audit.py

Exit 1 where one is known. Where no service answers, one line says so and the exit is 0: a build
without that network is not broken. What answers is tried on a package of which a vulnerability
is known, because a mirror that has no such records reads as a clean bill.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PINS = Path(__file__).parents[1] / "constraints.txt"
KNOWN = "jinja2==2.4.1"  # CVE-2014-1402 and others
SERVICES = ("pypi", "osv")
# Known and taken nevertheless, each with its reason.
EXCEPTIONS: dict[str, str] = {}


def ask(requirements: Path, options: list[str]) -> list[dict[str, Any]] | None:
    """Return what pip-audit says of every pinned package, None where the service does not answer.

    Raises:
        SystemExit: the requirements cannot be read.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements)]
    command += ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    ignored = [part for known in EXCEPTIONS for part in ("--ignore-vuln", known)]
    command += ["--timeout", "15", *options, *ignored]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if "invalid requirement" in done.stderr.lower():
        sys.exit(f"{requirements}: {' '.join(done.stderr.split())}")
    try:
        return json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return None


def answers(options: list[str]) -> bool:
    """Whether a service knows what is known."""
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "known.txt"
        known.write_text(KNOWN + "\n", encoding="utf-8")
        found = ask(known, options) or []
    return any(each.get("vulns") for each in found)


def audit(pins: Path, services: list[list[str]]) -> str | None:
    """Print what is known of the pins; return what is wrong with them, None for nothing."""
    options = next((each for each in services if answers(each)), None)
    found = ask(pins, options) if options else None
    if found is None:
        print("not audited: service not reachable")
        return None
    for each in found:
        for known in each.get("vulns", ()):
            mended = ", ".join(known["fix_versions"]) or "no release yet"
            print(f"{each['name']} {each['version']}: {known['id']}, mended in {mended}")
    skipped = [each["name"] for each in found if "skip_reason" in each]
    if skipped:
        print(f"not audited, the service has no record of them: {', '.join(skipped)}")
    vulnerable = sum(bool(each.get("vulns")) for each in found)
    print(f"{len(found) - len(skipped)} packages audited, {vulnerable} vulnerable")
    if not vulnerable:
        return None
    return (
        f"{pins.name}: {vulnerable} packages have known vulnerabilities; raise their pins, or name "
        "the vulnerability with its reason in EXCEPTIONS of .ci/audit.py and in SECURITY.md"
    )


def main() -> None:
    """Audit the pins."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pins", nargs="?", type=Path, default=PINS)
    parser.add_argument("--osv-url", help="ask this server, of the interface of osv.dev, alone")
    given = parser.parse_args()
    services = [["--vulnerability-service", name] for name in SERVICES]
    if given.osv_url:
        services = [["--vulnerability-service", "osv", "--osv-url", given.osv_url]]
    sys.exit(audit(given.pins, services))


if __name__ == "__main__":
    main()
