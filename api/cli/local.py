"""Commands that run the service on this machine: up, run, api, scheduler."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from api.cli.console import HomeOption, fail, say
from api.cli.follow import follow, summary
from api.cli.jobs import FAILED, INTERRUPTED, read_job
from api.client import ApiError, Client, Document, NoServiceError
from api.home import Home, HomeTakenError
from api.supervisor import (
    API_PORT,
    MLFLOW_PORT,
    Options,
    StartError,
    StopRequestedError,
    Supervisor,
    stopping_on_signals,
    usual_or_free,
)

TRACKING_SECONDS = 45.0


def up(
    home: HomeOption = None,
    host: Annotated[str, typer.Option(help="Address on which the API listens")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the API; 0: any free one", min=0, max=65535)] = API_PORT,
    cpus: Annotated[int | None, typer.Option(help="Processors for jobs [default: all]", min=1)] = None,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow; 0: any free one", min=0, max=65535)] = MLFLOW_PORT,
) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    options = Options(Home(home), host, port, mlflow_port, cpus)
    supervisor = Supervisor(options, say)
    started = time.monotonic()
    try:
        with stopping_on_signals(), supervisor as service:
            say(f"ready after {time.monotonic() - started:.1f} s", "green")
            say(f"  API        {service.url}   (described at {service.url}/docs)")
            say(f"  MLflow     {service.mlflow_url}")
            say(f"  admin key  {options.home.path / 'admin.key'}")
            say(f"  logs       {options.home.logs}")
            say("Ctrl-C stops everything.")
            supervisor.wait()
    except StopRequestedError:
        say("stopped; nothing was left running")
    except (HomeTakenError, StartError) as error:
        raise fail(error, 2) from error


def run(
    file: Annotated[Path, typer.Argument(help="Job file, YAML or JSON")],
    home: HomeOption = None,
    cpus: Annotated[int | None, typer.Option(help="Processors for jobs [default: all]", min=1)] = None,
) -> None:
    """Start everything, post one job over HTTP, show it to its end, stop what was started.

    Uses the service that runs on the home already, if there is one.
    """
    document = read_job(file)
    place = Home(home)
    running = place.service()
    try:
        with stopping_on_signals():
            if running is not None:
                say(f"using the service at {running.url}")
                job = _train(place, running.url, document)
            else:
                started = time.monotonic()
                needed = document.get("workers", {}).get("count", 1)
                options = Options(
                    place,
                    port=usual_or_free(API_PORT),
                    mlflow_port=usual_or_free(MLFLOW_PORT),
                    cpus=cpus or max(needed, os.cpu_count() or 1),
                )
                say("starting Ray, MLflow, the scheduler and the API ...")
                with Supervisor(options, lambda message: None) as service:
                    say(f"the service is ready after {time.monotonic() - started:.1f} s at {service.url}")
                    job = _train(place, service.url, document)
                say("stopped what was started; `make serve` (chainrule up) shows the API and MLflow again", "dim")
    except StopRequestedError:
        say("stopped", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    except (HomeTakenError, StartError, NoServiceError, ApiError) as error:
        raise fail(error, 2) from error
    raise typer.Exit(0 if job["status"] == "succeeded" else FAILED)


def _train(home: Home, url: str, document: Document) -> Document:
    key = os.environ.get("CHAINRULE_API_KEY") or home.admin_key()
    if key is None:
        raise NoServiceError(f"no API key in {home.path / 'admin.key'}")
    with Client(url, key) as client:
        job = client.create_job(document)
        say(f"posted {document['name']} to {url}/v1/jobs: {job['id']}")
        job = follow(client, job["id"])
        tracked = _wait_for_tracking(client, job["id"])
        job = client.get_job(job["id"])
        summary(client, job)
        say(f"  {'results in':12} {home.path / 'storage' / 'jobs' / job['id']}")
        if not tracked:
            say("  MLflow did not take everything in time; it will when the service runs again", "yellow")
        return job


def _wait_for_tracking(client: Client, job_id: str) -> bool:
    """Whether MLflow has got everything; it may have started later than the job ended."""
    deadline = time.monotonic() + TRACKING_SECONDS
    after: str | None = None
    while time.monotonic() < deadline:
        page = client.events(job_id, after=after)
        for event in page["data"]:
            after = event["id"]
            if event["type"] == "tracking.complete":
                return True
        time.sleep(0.2)
    return False


def api(
    host: Annotated[str | None, typer.Option(help="Address [$CHAINRULE_API_HOST, else 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port [$CHAINRULE_API_PORT, else 8400]", min=0, max=65535)] = None,
    home: HomeOption = None,
) -> None:
    """Run the REST API alone, as on a cluster."""
    import uvicorn

    from api.app import create_app
    from service.settings import Settings

    given = {"api_host": host, "api_port": port, "home": home}
    settings = Settings(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    uvicorn.run(
        create_app(settings),
        host=settings.api_host,
        port=settings.api_port,
        log_level=settings.log_level.lower(),
        access_log=False,  # the application writes its own, with request ids
        timeout_graceful_shutdown=3,
        server_header=False,
    )


def scheduler(home: HomeOption = None) -> None:
    """Run the scheduler alone, as on a cluster."""
    from service.scheduler import main
    from service.settings import Settings

    raise typer.Exit(main(Settings(home=home) if home else Settings()))
