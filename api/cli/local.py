"""Commands that run the service on this machine: up, run, api, scheduler."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.console import INTERRUPTED, USAGE, HomeOption, exit_code, fail, refused, say
from api.cli.follow import ENDED, follow, summary
from api.cli.submission import Submission, read_job
from api.client import ApiError, Client, Document, NoServiceError
from api.home import Home, HomeError
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
from workers.spec import parse_spec

if TYPE_CHECKING:
    from service.settings import Settings

InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond this machine without TLS, which something in front must add")
]
TRACKING_SECONDS = 45.0


def up(
    home: HomeOption = None,
    host: Annotated[str, typer.Option(help="Address on which the API listens")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the API; 0: any free one", min=0, max=65535)] = API_PORT,
    cpus: Annotated[int | None, typer.Option(help="Processors for jobs [default: all]", min=1)] = None,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow; 0: any free one", min=0, max=65535)] = MLFLOW_PORT,
    insecure: InsecureOption = False,
) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    options = Options(Home(home), host, port, mlflow_port, cpus, insecure)
    _require_privacy(_settings(home=options.home.path, api_host=host), insecure)
    supervisor = Supervisor(options, say)
    started = time.monotonic()
    try:
        with stopping_on_signals(), supervisor as service:
            say(f"ready after {time.monotonic() - started:.1f} s", "green")
            say(f"  dashboard  {service.url}/dashboard/   (sign in with the admin key)")
            say(f"  API        {service.url}   (described at {service.url}/docs)")
            say(f"  MLflow     {service.mlflow_url}")
            say(f"  admin key  {options.home.path / 'admin.key'}")
            say(f"  logs       {options.home.logs}")
            say("Ctrl-C stops everything.")
            supervisor.wait()
    except StopRequestedError:
        say("stopped; nothing was left running")
    except (HomeError, StartError) as error:
        raise fail(error, USAGE) from error


def run(
    file: Annotated[Path, typer.Argument(help="Job file, YAML or JSON")],
    home: HomeOption = None,
    cpus: Annotated[int | None, typer.Option(help="Processors for jobs [default: all]", min=1)] = None,
) -> None:
    """Start everything, post one job over HTTP, show it to its end, stop what was started.

    Uses the service that runs on the home already, if there is one.
    """
    submission = read_job(file)
    place = Home(home)
    running = place.service()
    try:
        with stopping_on_signals():
            if running is not None:
                say(f"using the service at {running.url}")
                job = _train(place, running.url, submission, stays=True)
            else:
                started = time.monotonic()
                _settings(home=place.path)
                workers = parse_spec(submission.document).workers
                options = Options(
                    place,
                    port=usual_or_free(API_PORT),
                    mlflow_port=usual_or_free(MLFLOW_PORT),
                    cpus=cpus or max(math.ceil(workers.most * workers.cpus), os.cpu_count() or 1),
                )
                say("starting Ray, MLflow, the scheduler and the API ...")
                with Supervisor(options, lambda message: None) as service:
                    say(f"the service is ready after {time.monotonic() - started:.1f} s at {service.url}")
                    job = _train(place, service.url, submission, stays=False)
                say("stopped what was started; `make serve` (chainrule up) shows the API and MLflow again", "dim")
    except StopRequestedError:
        say("stopped", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    except ApiError as error:
        raise refused(error, USAGE) from error
    except (HomeError, StartError, NoServiceError) as error:
        raise fail(error, USAGE) from error
    raise typer.Exit(exit_code(job))


def _train(home: Home, url: str, submission: Submission, *, stays: bool) -> Document:
    """``stays``: whether the service goes on after this command. If not, neither does the job when the command is interrupted; it
    would be in the way of the next one."""
    key = os.environ.get("CHAINRULE_API_KEY") or home.admin_key()
    if key is None:
        raise NoServiceError(f"no API key in {home.path / 'admin.key'}")
    with Client(url, key) as client:
        job = submission.post(client)
        say(f"posted {job['name']} to {url}/v1/jobs: {job['id']}")
        try:
            job = follow(client, job["id"])
        except StopRequestedError:
            if stays:
                say(f"{job['id']} goes on; `chainrule cancel {job['id']}` ends it", "yellow")
            else:
                client.kill_job(job["id"])
            raise
        tracked = job["attempt"] == 0 or job["status"] not in ENDED or _wait_for_tracking(client, job["id"])
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
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file with the certificate", exists=True)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key", exists=True)] = None,
    insecure: InsecureOption = False,
) -> None:
    """Run the REST API alone, as on a cluster."""
    settings = _settings(api_host=host, api_port=port, home=home)
    if (tls_certificate is None) != (tls_key is None):
        raise fail("--tls-certificate and --tls-key go together", USAGE)
    _require_privacy(settings, insecure or tls_key is not None)

    import uvicorn

    from api.app import create_app
    from api.dashboard.mount import mount
    from service.errors import ServiceError
    from service.keys import KeyFileError

    try:
        application = create_app(settings)
    except (KeyFileError, ServiceError) as error:
        raise fail(error, USAGE) from error
    mount(application, settings)
    uvicorn.run(
        application,
        host=settings.api_host,
        port=settings.api_port,
        log_level=settings.log_level.lower(),
        access_log=False,  # the application writes its own, with request ids
        timeout_graceful_shutdown=3,
        server_header=False,
        ssl_certfile=tls_certificate,
        ssl_keyfile=tls_key,
    )


def scheduler(home: HomeOption = None) -> None:
    """Run the scheduler alone, as on a cluster."""
    from service.scheduler import main

    raise typer.Exit(main(_settings(home=home)))


def _settings(**given: Any) -> Settings:
    """What is given here, else the environment. Raises typer.Exit for what cannot be."""
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings(**{field: value for field, value in given.items() if value is not None})
    except ValidationError as error:
        problems = [f"CHAINRULE_{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors()]
        raise fail("; ".join(problems), USAGE) from error


def _require_privacy(settings: Settings, private: bool) -> None:
    if not settings.on_loopback and not private:
        raise fail(
            f"keys would cross the network in the clear on {settings.api_host}: give `chainrule api` a certificate and a key, or say"
            " --insecure when something in front adds TLS",
            USAGE,
        )
