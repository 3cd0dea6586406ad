"""What the project's jobs have cost."""

from __future__ import annotations

from api.cli.console import HomeOption, JsonOption, print_json, say, service
from api.cli.repairs import hours


def usage(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show the workers' time of all jobs: what was trained, what went by after something had gone wrong, what repairs have saved."""
    with service(home) as client:
        found = client.usage()
    if as_json:
        print_json(found)
        return
    say(
        f"{found['jobs']} jobs of project {found['project']} have trained for {hours(found['trained_worker_hours'])} of workers' time."
    )
    if found["lost_steps"]:
        say(
            f"{hours(found['lost_worker_hours'])} of it, {found['lost_steps']} steps, went by after something had gone wrong."
        )
    if found["repaired_jobs"]:
        say(f"{hours(found['saved_worker_hours'])} were saved by repairs, in {found['repaired_jobs']} jobs.")
