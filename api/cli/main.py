"""The command line. Each command is a function of its module; this page lists them."""

from __future__ import annotations

import typer

from api.cli import (
    artifacts,
    attempts,
    changes,
    checkpoints,
    cluster,
    diagnose,
    doctor,
    findings,
    init,
    jobs,
    local,
    plan,
    quarantine,
    repairs,
    steps,
    usage,
)

app = typer.Typer(
    name="chainrule",
    help="Distributed training that watches backpropagation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    local.up,
    local.run,
    init.init,
    plan.plan,
    jobs.submit,
    jobs.jobs,
    jobs.show,
    jobs.logs,
    jobs.events,
    jobs.metrics,
    artifacts.artifacts,
    findings.health,
    repairs.repairs,
    repairs.undo,
    quarantine.quarantine,
    checkpoints.checkpoints,
    diagnose.diagnose,
    steps.step,
    steps.replay,
    attempts.attempts,
    attempts.workers,
    changes.pause,
    changes.resume,
    changes.update,
    changes.cancel,
    changes.kill,
    usage.usage,
    cluster.cluster,
    cluster.cordon,
    cluster.uncordon,
    doctor.doctor,
    local.api,
    local.scheduler,
):
    app.command()(command)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
