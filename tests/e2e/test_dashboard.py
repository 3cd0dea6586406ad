"""The dashboard in a real browser: sign in, submit, watch to the end, look at the gradients, cancel another job."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.e2e.product import Product
from tests.helpers import wait_for
from workers import artifacts

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
LONG_JOB = {
    "name": "long",
    "task": {"kind": "tabular", "data": {"source": "breast_cancer"}},
    "training": {"steps": 200_000, "batch_size": 64},
}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    running = Product(tmp_path_factory.mktemp("dashboard") / "home", "--cpus", "3")  # for both jobs at once
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.end()


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _picture()


class Watched:
    """A page, with what it complained about and whom it asked."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str | None] = set()
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))


@pytest.fixture
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        # Not the tests' proxies: the browser asks nobody but the product.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET), env={**os.environ})
        yield found
        found.close()


def sign_in(page: Page, product: Product) -> None:
    page.goto(f"{product.url}/")
    page.get_by_label("API key").fill(product.key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Submit a job")).to_be_visible(timeout=20_000)


def test_from_the_first_visit_to_a_trained_model(browser: Any, product: Product, tmp_path: Path) -> None:
    """Would catch a page that does not live, charts without data, a request that leaves the machine."""
    watched = Watched(browser.new_page(viewport={"width": 1400, "height": 900}))
    page = watched.page
    sign_in(page, product)
    long = product.http.post("/v1/jobs", json=LONG_JOB).json()["id"]

    page.get_by_role("button", name="Submit a job").click()
    page.get_by_role("button", name="digits, two workers").click()
    expect(page.get_by_text("This is a valid job")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Submit", exact=True).click()
    page.wait_for_url("**/dashboard/jobs/job-*", timeout=30_000)
    submitted = page.url.rpartition("/")[2]
    expect(page.get_by_text("running", exact=True)).to_be_visible(timeout=60_000)
    expect(page.get_by_text("succeeded", exact=True)).to_be_visible(timeout=90_000)
    assert product.job(submitted)["status"] == "succeeded"
    expect(page.locator("canvas:visible")).to_have_count(6)

    page.get_by_role("tab", name="Gradient flow").click()
    expect(page.get_by_text("No gradients were recorded yet")).to_be_hidden(timeout=20_000)
    expect(page.locator("canvas:visible").first).to_be_visible(timeout=20_000)
    page.get_by_role("tab", name="Events").click()
    expect(page.get_by_text("training.finished").first).to_be_visible(timeout=20_000)
    page.get_by_role("tab", name="Checkpoints").click()
    page.get_by_text("The finished model").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="model.safetensors").click()
    download.value.save_as(tmp_path / "model.safetensors")
    stored = product.home / "storage" / "jobs" / submitted / "model" / "model.safetensors"
    assert (tmp_path / "model.safetensors").read_bytes() == stored.read_bytes()

    kept = product.home / "storage" / "jobs" / submitted / "artifacts"
    artifacts.write(kept, 1000, {"samples.txt": b"To be, or not to be", "grid.png": PICTURE, "chain.pdb": b"ATOM"})
    artifacts.write(kept, 999, {"samples.txt": b"o bt e,on r"})
    page.get_by_role("tab", name="Samples").click()
    expect(page.get_by_text("To be, or not to be")).to_be_visible(timeout=20_000)
    picture = page.get_by_alt_text("grid.png")
    wait_for("the picture", lambda: picture.evaluate("each => each.complete && each.naturalWidth") == 2, 20)
    with page.expect_download() as download:
        page.get_by_role("link", name="chain.pdb").click()
    download.value.save_as(tmp_path / "chain.pdb")
    assert (tmp_path / "chain.pdb").read_bytes() == b"ATOM"
    page.get_by_role("combobox", name="after step").click()
    page.get_by_role("option", name="999", exact=True).click()
    expect(page.get_by_text("o bt e,on r")).to_be_visible(timeout=20_000)
    expect(page.get_by_text("To be, or not to be")).to_be_hidden(timeout=20_000)

    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("button", name="cancel long").click()
    page.get_by_role("button", name="Cancel it").click()
    ended = product.until(long, "the end of the other job", lambda job: job["finished_at"])
    assert ended["status"] == "cancelled"
    expect(page.get_by_text("cancelled", exact=True).first).to_be_visible(timeout=20_000)
    assert watched.complaints == []
    assert watched.hosts == {"127.0.0.1"}


def test_findings_on_data_are_on_the_page_of_the_job(browser: Any, product: Product, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (200, 8, 8), dtype=np.uint8), np.arange(200) % 2
    np.savez(tmp_path / "images.npz", x_train=pixels, y_train=labels, x_test=pixels[:50], y_test=labels[:50])
    data = {"source": "npz", "path": str(tmp_path / "images.npz")}
    task = {"kind": "image_classification", "data": data, "model": {"architecture": "mlp"}}
    training = {"steps": 30, "batch_size": 50}
    job_id = product.http.post("/v1/jobs", json={"name": "leaked", "task": task, "training": training}).json()["id"]
    job = product.until(job_id, "its end", lambda job: job["finished_at"])
    assert job["status"] == "succeeded", job["reason"]
    assert job["health"]["verdict"] == "warning"
    page = browser.new_page()
    sign_in(page, product)
    page.goto(f"{product.url}/dashboard/jobs/{job_id}")
    expect(page.get_by_text("health: warning")).to_be_visible(timeout=20_000)
    page.get_by_role("tab", name="Health").click()
    expect(page.get_by_text("train evaluation overlap", exact=True)).to_be_visible(timeout=20_000)
    expect(page.get_by_text("in the data or the settings", exact=True)).to_be_visible()
    expect(page.get_by_text("50 of 50 evaluation images (100 %) are in the training part").last).to_be_visible()
    assert "train_evaluation_overlap (warning)" in product.chainrule("show", job_id)


SICK_JOB = {
    "name": "thrown-about",
    "task": {
        "kind": "image_classification",
        "data": {"source": "digits"},
        "model": {"architecture": "mlp", "hidden": [64, 64, 64]},
    },
    "training": {"steps": 300, "batch_size": 64, "seed": 0},
    "optimizer": {"name": "sgd", "learning_rate": 4.0, "momentum": 0.9},
}


def chart_options(page: Page) -> list[dict[str, Any]]:
    """What the charts that are seen were drawn from, as the browser has it."""
    found: list[dict[str, Any]] = page.evaluate(
        """() => [...new Set(  // a chart may have several canvases
            [...document.querySelectorAll("canvas")].filter((each) => each.offsetParent).map((each) => each.closest("[id^=c]"))
        )].map((box) => {
            const options = getElement(Number(box.id.slice(1))).chart.getOption();
            return {
                marks: (options.series[0].markLine?.data ?? []).map((mark) => [mark.xAxis, mark.name]),
                type: options.series[0].type, axis: options.yAxis[0].type,
                window: [options.dataZoom?.[0]?.startValue, options.dataZoom?.[0]?.endValue],
                layers: options.yAxis[0].data, last: options.series[0].data?.at?.(-1)?.[0],
            };
        })"""
    )
    return found


def test_a_sick_job_is_told_in_words_marks_and_colours(browser: Any, product: Product) -> None:
    """Would catch a verdict that nobody sees, a mark at no place of the charts, a statistic that is not drawn."""
    job_id = product.http.post("/v1/jobs", json=SICK_JOB).json()["id"]
    job = product.until(job_id, "its end", lambda job: job["finished_at"], 180)
    health = product.http.get(f"/v1/jobs/{job_id}/health").json()
    assert job["status"] == "succeeded", job["reason"]
    assert health["verdict"] == "critical"
    finding = health["findings"][0]
    assert finding["code"] == "lr_too_high"
    assert ("raised", "lr_too_high") in [(each["event"], each["finding"]["code"]) for each in health["history"]]
    assert health["facts"]["optimizer"] == "sgd"
    assert health["watching"]["probes"] >= 9
    assert health["watching"]["share"] > 0

    watched = Watched(browser.new_page(viewport={"width": 1400, "height": 900}))
    page = watched.page
    sign_in(page, product)
    page.goto(f"{product.url}/dashboard/jobs/{job_id}")
    first = finding["explanation"].partition(". ")[0]
    expect(page.get_by_text(f"{first}.", exact=True)).to_be_visible(timeout=20_000)
    marked = [[finding["first_bad_step"], "learning rate too high"]]
    wait_for("marks", lambda: [each["marks"] for each in chart_options(page)][:3] == [marked, marked, []], 20)

    page.get_by_role("button", name="1 finding").press("Enter")  # with the keyboard
    expect(page.get_by_text(finding["explanation"], exact=True)).to_be_visible(timeout=20_000)
    expect(page.get_by_text(f"What helps: {finding['suggestion']}")).to_be_visible()
    expect(page.get_by_role("row", name="Largest update in one step")).to_contain_text(
        "healthy: about 0.001, at most 0.05"
    )
    expect(page.get_by_text(re.compile(r"^Watching has cost [\d.]+ % of the steps' time so far"))).to_be_visible()
    page.get_by_text("What was known before the first step").click()
    expect(page.get_by_text("cross_entropy").first).to_be_visible(timeout=20_000)

    link = page.get_by_role("link", name=f"first at step {finding['first_bad_step']}")
    assert link.get_attribute("href") == f"/dashboard/jobs/{job_id}?step={finding['first_bad_step']}"
    link.press("Enter")
    expect(page.get_by_text(f"Around step {finding['first_bad_step']}")).to_be_visible(timeout=20_000)
    wait_for("the window", lambda: chart_options(page)[0]["window"][1] == finding["first_bad_step"] + 15, 20)
    page.get_by_role("button", name="Show the whole run").click()
    expect(page.get_by_text("Around step")).to_be_hidden()

    verdicts = answered(product, "health")
    page.get_by_role("tab", name="Statistics").click()
    dead = "At this step all elements of the layer's gradient were 0, or not finite."  # of linear1, in the end
    expect(page.get_by_text(dead)).to_be_visible(timeout=20_000)
    for _ in range(health["watching"]["probes"] - 1):
        page.get_by_role("slider").locator("[tabindex]").press("ArrowLeft")
    wait_for("both charts", lambda: [each["type"] for each in chart_options(page)] == ["heatmap", "bar"], 20)
    expect(page.get_by_text(dead)).to_be_hidden()
    assert chart_options(page)[0]["layers"] == ["linear1", "linear2", "linear3", "output"]
    expect(page.get_by_text(re.compile(r"^Watching has cost [\d.]+ % of the steps' time so far"))).to_be_visible()
    page.get_by_role("combobox", name="statistic").click()
    page.get_by_role("option", name="Silent units").click()
    wait_for("activations", lambda: chart_options(page)[0]["layers"] == ["relu1", "relu2", "relu3"], 20)
    page.get_by_role("combobox", name="statistic").click()
    page.get_by_role("option", name="Second moments").click()
    expect(page.get_by_text("Second moments was measured nowhere")).to_be_visible(timeout=20_000)
    assert answered(product, "health") == verdicts  # what the watching costs comes with the statistics
    assert "chainrule health" in product.chainrule("show", job_id)
    assert watched.complaints == []


def test_a_job_that_is_mended_says_so_and_is_undone_by_a_click(browser: Any, product: Product) -> None:
    """Would catch a card that does not live, and a click that the job never hears of."""
    job = {
        "name": "mended",
        "task": {"kind": "image_classification", "data": {"source": "digits"}},
        "training": {"steps": 6000, "batch_size": 64},
        "optimizer": {"name": "adamw", "learning_rate": 3.0},
        "health": {"mode": "repair"},
    }
    job_id = product.http.post("/v1/jobs", json=job).json()["id"]
    watched = Watched(browser.new_page(viewport={"width": 1400, "height": 900}))
    page = watched.page
    sign_in(page, product)
    page.goto(f"{product.url}/dashboard/jobs/{job_id}")
    page.get_by_role("tab", name="Health").click()
    expect(page.get_by_text("What was done about it")).to_be_visible(timeout=90_000)
    expect(page.get_by_text("multiplies the learning rate by").first).to_be_visible()
    expect(page.get_by_text("kept", exact=True).first).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("undone", exact=True).first).to_be_visible(timeout=30_000)
    found = product.http.get(f"/v1/jobs/{job_id}/repairs").json()["repairs"]
    assert found[-1]["state"] == "undone"
    product.http.post(f"/v1/jobs/{job_id}/kill")
    assert watched.complaints == []


def test_a_zoom_stays_at_its_steps_while_the_run_goes_on(browser: Any, product: Product) -> None:
    """Would catch one that every new point undoes, one that drifts with the length of the run, and one that another look takes over."""
    job_id = product.http.post("/v1/jobs", json={**LONG_JOB, "name": "zoomed"}).json()["id"]
    product.until(job_id, "some steps", lambda job: (job["progress"] or {}).get("step", 0) > 300)
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    sign_in(page, product)
    page.goto(f"{product.url}/dashboard/jobs/{job_id}?step=100")
    expect(page.get_by_text("Around step 100")).to_be_visible(timeout=20_000)

    def after_more_points(seen: dict[str, Any]) -> dict[str, Any]:
        wait_for("newer points", lambda: (chart_options(page)[0]["last"] or 0) > (seen["last"] or 0), 30)
        return chart_options(page)[0]

    def zoomed() -> dict[str, Any] | None:
        """With the wheel over the first chart; None: it did not stay."""
        box = page.locator("canvas:visible").first.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        before = after_more_points(chart_options(page)[0])
        page.mouse.wheel(0, -200)
        wait_for("a zoom", lambda: chart_options(page)[0]["window"] != before["window"], 20)
        seen = chart_options(page)[0]
        after = after_more_points(seen)
        return after if after["window"] == seen["window"] else None

    def whole() -> bool:
        drawn = chart_options(page)[:1]
        return [each["window"] for each in drawn] == [[1, each["last"]] for each in drawn] != []

    inner = wait_for("a zoom that stays", zoomed, 60)
    for _ in range(2):
        inner = after_more_points(inner)
    assert inner["window"][0] > 1
    assert inner["window"][1] < inner["last"]
    assert chart_options(page)[1]["window"] != inner["window"]  # the wheel was over another chart
    page.get_by_role("button", name="Show the whole run").click()
    wait_for("the whole run", whole, 20)
    wait_for("another zoom that stays", zoomed, 60)
    page.goto(f"{product.url}/dashboard/jobs/{job_id}")
    wait_for("nothing of it", whole, 20)
    product.http.post(f"/v1/jobs/{job_id}/kill")


def answered(product: Product, route: str) -> float:
    """How often the API was asked for that of any job."""
    pattern = re.compile(rf'^chainrule_http_requests_total{{.*route="/v1/jobs/{{job_id}}/{route}".*}} (\S+)$', re.M)
    return sum(map(float, pattern.findall(product.http.get("/metrics").text)))


def test_an_empty_page_says_why(browser: Any, product: Product) -> None:
    training = {"steps": 30, "batch_size": 64}
    spec = {**LONG_JOB, "name": "unwatched", "training": training, "gradients": {"overhead_budget": 0}}
    job_id = product.http.post("/v1/jobs", json=spec).json()["id"]
    product.until(job_id, "its end", lambda job: job["finished_at"])
    page = browser.new_page()
    sign_in(page, product)
    page.goto(f"{product.url}/dashboard/jobs/{job_id}")
    page.get_by_role("tab", name="Statistics").click()
    expect(page.get_by_text("gradients.overhead_budget of this job is 0").first).to_be_visible(timeout=20_000)
    page.goto(f"{product.url}/dashboard/jobs/{job_id}?step=20")
    expect(page.get_by_text("Around step 20")).to_be_visible(timeout=20_000)


AWAY = "The service does not answer just now."
OF_THE_LOST_CONNECTION = re.compile(r"WebSocket connection to .* failed|net::ERR_(CONNECTION|SOCKET|EMPTY)")


def test_the_pages_say_when_the_service_is_away_and_go_on_when_it_is_back(browser: Any, product: Product) -> None:
    """The API's process is killed under two open pages, and its guardian starts another. Would catch a page that stays dead, is empty
    afterwards, or wants the key again."""
    job_id = product.http.post("/v1/jobs", json={**LONG_JOB, "name": "unimpressed"}).json()["id"]
    product.until(job_id, "its training", lambda job: job["progress"])
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    jobs, job = Watched(context.new_page()), Watched(context.new_page())
    sign_in(jobs.page, product)
    job.page.goto(f"{product.url}/dashboard/jobs/{job_id}")
    expect(job.page.get_by_text(re.compile(r"^step \d"))).to_be_visible(timeout=20_000)
    for watched in (jobs, job):
        expect(watched.page.get_by_text(AWAY)).to_be_hidden()

    for _ in range(2):  # also when the process that came back is killed
        api = product.role("api")
        before = shown_step(jobs.page), shown_step(job.page)
        api.kill()
        for watched in (jobs, job):
            expect(watched.page.get_by_text(AWAY)).to_be_visible(timeout=20_000)
        for watched, step in zip((jobs, job), before, strict=True):
            expect(watched.page.get_by_text(AWAY)).to_be_hidden(timeout=60_000)
            assert wait_for("newer steps", partial(newer_step, watched.page, step), 30) > step
        assert product.role("api").pid != api.pid
    assert jobs.page.url == f"{product.url}/dashboard/"
    assert job.page.url == f"{product.url}/dashboard/jobs/{job_id}"
    for watched in (jobs, job):
        assert [each for each in watched.complaints if not OF_THE_LOST_CONNECTION.search(each)] == []
    product.http.post(f"/v1/jobs/{job_id}/kill")
    context.close()


def newer_step(page: Page, than: int) -> int | None:
    step = shown_step(page)
    return step if step > than else None


def shown_step(page: Page) -> int:
    """Steps of the job ``unimpressed`` as the page shows them; -1 while it does not."""
    found = re.search(r"([\d,]+) / 200,000", page.locator("body").inner_text())
    return int(found[1].replace(",", "")) if found else -1


def test_nothing_is_shown_without_a_key(browser: Any, product: Product) -> None:
    page = browser.new_page()
    for path in ("/dashboard/", "/dashboard/submit", "/dashboard/jobs/job-1", "/dashboard/files/job-1/model/files/x"):
        page.goto(f"{product.url}{path}")
        expect(page.get_by_label("API key")).to_be_visible(timeout=20_000)
    page.get_by_label("API key").fill("ck-wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("This key is not valid")).to_be_visible(timeout=20_000)
