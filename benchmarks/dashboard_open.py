"""How long the page of a long job takes to open, in a real browser.

A run of 100,000 steps and 300 layers is recorded as its worker group would have (``long_run.py``). In each round an API process starts
that has read nothing of it yet, and a browser with an empty cache signs in and opens the job. Timed is from the navigation until the
loss curve is drawn, and from the click on its tab until the heat map of the gradients is; then the same again; then the requests
behind the page alone, before and after the job has gone on by some steps. There is no peer: these are absolute times of one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from api.dashboard.curves import CURVES, POINTS
from api.dashboard.figures import COLOURS, flow_points
from api.supervisor import free_port
from benchmarks.long_run import LongRun
from benchmarks.measure import write
from benchmarks.stack import CHAINRULE, wait_for_answer

WANTED_SECONDS = 2.0
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Looked at is what is on the screen: pixels in the first curve's colour; pixels at the right edge of the heat map, which is drawn last.
DRAWN = """([colour, isHeatMap]) => new Promise((done, fail) => {
  const close = (data, i) => data[i + 3] > 99 && colour.every((c, k) => Math.abs(data[i + k] - c) < 40);
  const isDrawn = canvas => {
    const context = canvas.getContext('2d'), scale = canvas.width / canvas.clientWidth;
    if (isHeatMap) {
      const x = canvas.width - Math.round(106 * scale);
      return [0.1, 0.3, 0.5, 0.7].every(share => context.getImageData(x, Math.round(canvas.height * share), 1, 1).data[3] > 99);
    }
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let found = 0;
    for (let i = 0; i < data.length; i += 4) found += close(data, i);
    return found > 300;
  };
  const look = () => {
    const canvases = [...document.querySelectorAll('canvas')].filter(c => c.clientWidth && c.width);
    if (canvases.length && (isHeatMap ? canvases.some(isDrawn) : isDrawn(canvases[0]))) done(performance.now() / 1000);
    else if (performance.now() > 60000) fail('not drawn within a minute');
    else setTimeout(look, 20);
  };
  look();
})"""


@contextlib.contextmanager
def api(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A new API process on ``home``: its address, and itself."""
    port = free_port("127.0.0.1")
    environment = {**os.environ, "CHAINRULE_HOME": str(home), "CHAINRULE_API_PORT": str(port)}
    with (home / "api.log").open("ab") as log:
        process = subprocess.Popen(
            [*CHAINRULE, "api"], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/healthz")
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=20)


class Browser:
    """Chromium, with nothing in its cache. ``open_job`` takes the time."""

    def __init__(self, url: str, key: str) -> None:
        from playwright.sync_api import sync_playwright

        self._url = url
        self._playwright = sync_playwright().start()
        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        self._browser = self._playwright.chromium.launch(executable_path=path, args=list(QUIET))
        self._page = self._browser.new_page(viewport={"width": 1400, "height": 900})
        self._page.goto(f"{url}/dashboard/sign-in")
        self._page.get_by_label("API key").fill(key)
        self._page.get_by_role("button", name="Sign in").click()
        self._page.get_by_role("button", name="Submit a job").wait_for()

    def open_job(self, job_id: str) -> dict[str, float]:
        """Seconds from the navigation, or from the click on the tab, until it is drawn."""
        curve = tuple(int(COLOURS[0][at : at + 2], 16) for at in (1, 3, 5))
        self._page.goto(f"{self._url}/dashboard/jobs/{job_id}", wait_until="commit")
        loss = self._page.evaluate(DRAWN, [curve, False])
        clicked = self._page.evaluate("performance.now() / 1000")
        self._page.get_by_role("tab", name="Gradient flow").click()
        return {"loss curve": loss, "gradient flow": self._page.evaluate(DRAWN, [curve, True]) - clicked}

    def close(self) -> None:
        self._browser.close()
        self._playwright.stop()


def requests(layers: int) -> dict[str, str]:
    """What the page asks for, and what a client asks for that names nothing."""
    keys = ",".join(key for curve in CURVES for key in curve.keys)
    return {
        "series of the page": f"metrics?keys={keys}&max_points={POINTS}",
        "all series": "metrics",
        "gradients of the page": f"gradients?max_points={flow_points(layers)}",
        "gradients of 1,000 steps": "gradients",
    }


class Asker:
    def __init__(self, url: str, process: psutil.Process, run: LongRun) -> None:
        self._client = httpx.Client(
            base_url=f"{url}/v1/jobs/{run.job_id}/", headers={"authorization": f"Bearer {run.key}"}, timeout=120
        )
        self._process = process

    def ask(self, path: str) -> dict[str, float]:
        before, started = self._process.io_counters().read_chars, time.perf_counter()
        answer = self._client.get(path).raise_for_status()
        seconds = time.perf_counter() - started
        read = self._process.io_counters().read_chars - before
        return {"seconds": seconds, "bytes_read": read, "bytes_sent": len(answer.content)}


def measure_round(home: Path, run: LongRun, layers: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with api(home) as (url, process), contextlib.closing(Browser(url, run.key)) as browser:
        found["first"] = browser.open_job(run.job_id)
        found["again"] = browser.open_job(run.job_id)
        found["api_memory_bytes"] = process.memory_info().rss
    with api(home) as (url, process):
        asker = Asker(url, process, run)
        found["first_requests"] = {name: asker.ask(path) for name, path in requests(layers).items()}
        run.train(20)
        found["requests_after_20_steps"] = {name: asker.ask(path) for name, path in requests(layers).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        run = LongRun(home, arguments.steps, arguments.layers)
        started = time.perf_counter()
        run.train(arguments.steps)
        recorded = {
            "seconds": time.perf_counter() - started,
            "metrics_bytes": _size(run.folder.path / "metrics"),
            "gradients_bytes": _size(run.folder.gradients_path),
        }
        print(f"recorded: {recorded}", flush=True)
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append(measure_round(home, run, arguments.layers))
            print(rounds[-1], flush=True)
        run.finish()
    document = {"steps": arguments.steps, "layers": arguments.layers, "wanted_seconds": WANTED_SECONDS}
    middle = {
        f"{what}, {when}": statistics.median(each[when][what] for each in rounds)
        for when in ("first", "again")
        for what in ("loss curve", "gradient flow")
    }
    write("dashboard_open", document | {"recorded": recorded, "medians": middle, "rounds": rounds})
    for what, seconds in middle.items():
        print(f"{what}: {seconds:.2f} s (wanted {WANTED_SECONDS:.0f} s)")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    main()
