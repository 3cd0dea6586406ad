"""What tests of the commands share: calling one in this process, a file that is a job, a job that has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from api.cli.main import app
from tests.integration.api_service import DIGITS, Service


def chainrule(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def job_file(folder: Path, **fields: Any) -> str:
    path = folder / "job.json"
    path.write_text(json.dumps(DIGITS | fields))
    return str(path)


def finished(service: Service) -> str:
    job_id = service.submit()
    service.run_until(job_id, "succeeded")
    return job_id
