"""The command for a job's checkpoints."""

from __future__ import annotations

from api.cli.console import HomeOption, JobArgument, JsonOption, clock, print_json, print_table, say, service


def checkpoints(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List a job's checkpoints with their verdicts: `resume --from healthy` goes on from the last healthy one."""
    with service(home) as client:
        found = client.checkpoints(job_id)["data"]
    if as_json:
        for checkpoint in found:
            print_json(checkpoint)
    elif not found:
        say(f"{job_id} has no checkpoint", "dim")
    else:
        rows = (
            (
                each["step"],
                each["verdict"],
                ", ".join(f"{name} {value:.4g}" for name, value in each["metrics"].items()),
                f"{each['bytes'] / 1e6:.1f} MB",
                clock(each["created_at"]),
            )
            for each in found
        )
        print_table(("step", "verdict", "metrics", "size", "saved (UTC)"), rows)
