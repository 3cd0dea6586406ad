"""What the examples reach on real data, seed by seed: held-out metrics and the wall time of the whole process, two workers with a thread each.

No peer is measured here: the bars are those of the field, and the metrics are what counts. Times are of one machine, whatever else it did.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import write
from workers.jobfile import read_job_file
from workers.spec import parse_spec, read_from

HOME = Path(__file__).parents[1]
DATA = HOME.parent / "shared" / "data"


@dataclass(frozen=True)
class Example:
    file: str
    moved: Mapping[str, str]  # path in the job file -> path in the folder of data sets
    metric: str
    bar: float  # at least


EXAMPLES = {
    "fashion-mnist": Example(
        "fashion-mnist.yaml",
        {"fashion-mnist.npz": "fashion-mnist/fashion-mnist-12k-2k.npz"},
        "eval/accuracy",
        0.89,
    ),
    "pneumonia": Example(
        "pneumonia.yaml",
        {"pneumoniamnist-balanced.npz": "medical/pneumoniamnist-balanced.npz"},
        "test/auroc",
        0.93,
    ),
    "breast-cancer": Example("breast-cancer.yaml", {}, "eval/accuracy", 0.96),
    "proteins": Example(
        "proteins.yaml",
        {"proteins/train": "proteins/train", "proteins/train.csv": "proteins/train.csv"},
        "eval/lddt_ca",
        0.0,
    ),
}


def trained(example: Example, data: Path, seed: int) -> dict[str, Any]:
    """Metrics of the end of the run (the last evaluation's, and the test's), and seconds."""
    text = json.dumps(read_job_file(HOME / "examples" / example.file))
    for old, new in example.moved.items():
        text = text.replace(json.dumps(old), json.dumps(str(data / new)))
    document = json.loads(text)
    document["training"]["seed"] = seed
    document["workers"] = {"count": 2, "threads": 1}
    document = read_from(str(HOME), document, parse_spec(document))
    with tempfile.TemporaryDirectory() as folder:
        job, output = Path(folder) / "job.json", Path(folder) / "output"
        job.write_text(json.dumps(document))
        began = time.perf_counter()
        command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME)}
        subprocess.run(
            [*command, "-m", "workers.train", str(job), "--output", str(output)],
            check=True,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in (output / "events/attempt-0001.jsonl").read_text().splitlines()]
    metrics: dict[str, float] = {}
    for row in rows:
        if row["type"] in ("evaluation", "test"):
            metrics |= row["data"]["metrics"]
    return {"seed": seed, "seconds": round(seconds, 1), "metrics": metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(EXAMPLES), help=", ".join(EXAMPLES))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments = parser.parse_args()
    for name in arguments.names:
        example = EXAMPLES[name]
        runs = [trained(example, arguments.data.resolve(), seed) for seed in arguments.seeds]
        values = [run["metrics"][example.metric] for run in runs]
        document = {"file": example.file, "metric": example.metric, "bar": example.bar, "values": values, "runs": runs}
        path = write(f"reached_{name.replace('-', '_')}", document)
        shown = ", ".join(f"{run['metrics'][example.metric]:.4f} ({run['seconds']:.0f} s)" for run in runs)
        print(f"{path.name}: {example.metric} {shown}; wanted at least {example.bar}", flush=True)


if __name__ == "__main__":
    main()
