"""`make audit` fails on a known vulnerability, and says so where nobody can be asked."""

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci/audit.py"
RECORD = {
    "id": "PYSEC-2014-82",
    "summary": "predictable names in /tmp",
    "affected": [
        {
            "package": {"name": "NAME", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.7.2"}]}],
        }
    ],
}


@contextmanager
def service(*vulnerable: str):
    """Serve osv.dev's interface, in which the packages named are vulnerable; yield its URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["package"]["name"]
            record = json.loads(json.dumps(RECORD).replace("NAME", name))
            answer = json.dumps({"vulns": [record]} if name in vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


def audit(pins: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(AUDIT), str(pins), "--osv-url", url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    pytest.importorskip("pip_audit")
    path = tmp_path / "constraints.txt"
    path.write_text("# pinned\nclick==8.5.1\nrich==15.0.0\n", encoding="utf-8")
    return path


def test_a_known_vulnerability_fails_and_is_named(pins: Path):
    with service("jinja2", "rich") as url:
        done = audit(pins, url)
    assert done.returncode == 1
    assert "rich 15.0.0: PYSEC-2014-82, mended in 2.7.2" in done.stdout
    assert "click" not in done.stdout
    assert "constraints.txt: 1 packages have known vulnerabilities; raise their pins" in done.stderr


@pytest.mark.long
def test_where_nobody_answers_one_line_says_so_and_nothing_fails(pins: Path):
    with service() as url:
        pass  # closed again
    done = audit(pins, url)
    assert (done.returncode, done.stdout) == (0, "not audited: service not reachable\n")


@pytest.mark.long
def test_a_server_that_knows_no_vulnerability_at_all_is_no_clean_bill(pins: Path):
    with service() as url:
        done = audit(pins, url)
    assert (done.returncode, done.stdout) == (0, "not audited: service not reachable\n")


@pytest.mark.long
def test_clean_pins_pass(pins: Path):
    with service("jinja2") as url:
        done = audit(pins, url)
    assert (done.returncode, done.stdout) == (0, "2 packages audited, 0 vulnerable\n")


@pytest.mark.long
def test_pins_that_cannot_be_read_are_no_clean_bill(pins: Path):
    pins.write_text("rich >>> 3\n", encoding="utf-8")
    with service("jinja2") as url:
        done = audit(pins, url)
    assert done.returncode == 1
    assert "rich >>> 3" in done.stderr
