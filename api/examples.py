"""Examples for the OpenAPI document, as the service answers them. A test validates each against the shape that it illustrates."""

from __future__ import annotations

from typing import Any

JOB_ID = "job-5f0c2a9be61d4873a0c4d7e2"
NODE_ID = "4c1f0d5b1a3e"
FILE_ID = "file-5f0c2a9be61d4873a0c4d7e2"

SUBMITTED = {
    "name": "digits",
    "task": {
        "kind": "image_classification",
        "data": {"source": "digits"},
        "model": {"architecture": "cnn", "channels": [32, 64]},
    },
    "training": {"epochs": 20, "batch_size": 128, "clip_norm": 1.0},
    "optimizer": {"name": "adamw", "learning_rate": 0.002},
    "schedule": {"name": "cosine", "warmup_steps": 20},
    "workers": {"count": 2},
    "evaluation": {"every_steps": 50},
}

TABLE = {
    "name": "churn",
    "task": {
        "kind": "tabular",
        "data": {"source": "csv", "path": "/data/churn.csv", "target": "churned"},
        "objective": "classification",
    },
}

YAML = """\
name: digits
task:
  kind: image_classification
  data: {source: digits}
training: {epochs: 20, batch_size: 128}
optimizer: {learning_rate: 2e-3}
workers: {count: 2}
"""

_SPEC = {"schema": {"$ref": "#/components/schemas/JobSpec"}}
JOB_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A job. Only name and task are required.",
        "content": {
            "application/json": {
                **_SPEC,
                "examples": {
                    "digits": {"summary": "Handwritten digits, two workers", "value": SUBMITTED},
                    "table": {"summary": "Rows of a CSV file", "value": TABLE},
                },
            },
            "application/yaml": {**_SPEC, "examples": {"digits": {"summary": "The same as YAML", "value": YAML}}},
        },
    }
}

CHANGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "What is to be changed; everything else stays as it is.",
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobChange"},
                "examples": {
                    "workers": {"summary": "Four workers from now on", "value": {"workers": {"count": 4}}},
                    "elastic": {
                        "summary": "One to eight, before others",
                        "value": {"workers": {"min": 1, "max": 8}, "priority": 10},
                    },
                },
            }
        },
    }
}

FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A form with the file and what it is for.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "a zip or tar of the folder's content",
                        },
                        "purpose": {"type": "string", "enum": ["bundle"]},
                    },
                }
            }
        },
    }
}

RESUME_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "description": "May be left out.",
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Resume"},
                "examples": {"healthy": {"summary": "From the last healthy checkpoint", "value": {"from": "healthy"}}},
            }
        },
    }
}

CORDON_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "description": "May be left out.",
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Cordon"},
                "examples": {"reason": {"summary": "With a reason", "value": {"reason": "new memory on Monday"}}},
            }
        },
    }
}

QUEUED_JOB: dict[str, Any] = {
    "id": JOB_ID,
    "object": "job",
    "name": "digits",
    "status": "queued",
    "reason": None,
    "waiting": None,
    "project": "default",
    "priority": 0,
    "created_at": "2026-11-23T19:00:00.000Z",
    "started_at": None,
    "finished_at": None,
    "deadline_at": None,
    "attempt": 0,
    "progress": None,
    "latest": {},
    "health": {},
    "workers": [],
    "recoveries": 0,
    "metadata": {},
    "spec": SUBMITTED,
    "links": {"mlflow": None, "dashboard": None},
}

_PLAN_MEMORY = {"weights": 79416, "gradients": 78632, "optimizer": 157304, "activations": 2246408, "buffers": 0,
                "process": 301989888, "total": 304551648}  # fmt: skip
_LAYOUT = {"strategy": "ddp", "workers": 2, "accumulate": 1, "microbatch": 64, "memory": _PLAN_MEMORY, "fits": None}

PLAN: dict[str, Any] = {
    "object": "plan",
    "computed": True,
    "message": None,
    "parameters": 19658,
    "trained_parameters": 19658,
    "samples": 1437,
    "steps": 240,
    "limit": None,
    "limit_name": None,
    **_LAYOUT,
    "layouts": [_LAYOUT | {"workers": 1, "microbatch": 128}],
    "flops_per_step": 236421120,
    "seconds_per_step": 0.0064,
    "seconds": 1.5,
    "price": None,
    "currency": "USD",
    "advice": [],
    "assumptions": ["memory: live tensors of a training step, counted on shapes"],
}

_WORKER: dict[str, Any] = {
    "node": "127.0.0.1",
    "node_id": NODE_ID,
    "device": "cpu",
    "state": "running",
    "started_at": "2026-11-23T19:00:02.100Z",
    "ended_at": None,
    "why": None,
}

RUNNING_JOB: dict[str, Any] = QUEUED_JOB | {
    "status": "running",
    "started_at": "2026-11-23T19:00:02.500Z",
    "attempt": 1,
    "progress": {"step": 120, "steps": 240, "epoch": 10.0, "eta_seconds": 6.1, "samples_per_second": 2450.0},
    "latest": {"train/loss": 0.08, "eval/accuracy": 0.964, "gradient/norm": 0.41},
    "health": {"verdict": "healthy", "sentence": "Every layer learns.", "findings": []},
    "workers": [{"rank": 0, "pid": 4711, **_WORKER}, {"rank": 1, "pid": 4712, **_WORKER}],
    "links": {"mlflow": "http://127.0.0.1:5000/#/experiments/1/runs/0af3", "dashboard": None},
}

CANCELLING_JOB: dict[str, Any] = RUNNING_JOB | {"status": "cancelling"}
PAUSING_JOB: dict[str, Any] = RUNNING_JOB | {"status": "pausing"}
QUEUED_AGAIN_JOB: dict[str, Any] = RUNNING_JOB | {"status": "queued", "workers": []}

ATTEMPT: dict[str, Any] = {
    "id": "attempt-5f0c2a9be61d4873a0c4d7e2-1",
    "object": "job.attempt",
    "job_id": JOB_ID,
    "number": 1,
    "status": "succeeded",
    "created_at": "2026-11-23T19:00:00.300Z",
    "started_at": "2026-11-23T19:00:02.500Z",
    "finished_at": "2026-11-23T19:00:15.000Z",
    "reason": {"code": "completed", "message": "all 240 steps are done", "whose": "nobody", "retryable": False},
    "detail": {"steps": 240, "seconds": 12.3},
    "workers": 3,
    "recoveries": [
        {
            "lost_at": "2026-11-23T19:00:07.310Z",
            "ranks": [1],
            "cause": "killed by SIGKILL",
            "step": 133,
            "source": "memory",
            "seconds": 1.2,
        }
    ],
}

WORKER: dict[str, Any] = {
    "id": "worker-5f0c2a9be61d4873a0c4d7e2-1-1-4712",
    "object": "job.worker",
    "job_id": JOB_ID,
    "attempt": 1,
    "rank": 1,
    "pid": 4712,
    **_WORKER,
    "state": "lost",
    "ended_at": "2026-11-23T19:00:07.310Z",
    "why": "killed by SIGKILL",
}

EVENT: dict[str, Any] = {
    "id": "event-5f0c2a9be61d4873a0c4d7e2-12",
    "object": "job.event",
    "job_id": JOB_ID,
    "sequence": 12,
    "created_at": "2026-11-23T19:00:05.120Z",
    "level": "info",
    "type": "evaluation",
    "message": "step 50: loss 0.31, accuracy 0.92",
    "data": {"step": 50, "metrics": {"eval/loss": 0.31, "eval/accuracy": 0.92}},
}

EVENT_STREAM = """\
event: job.event
id: 12
data: {"object":"job.event","sequence":12,"type":"evaluation","message":"step 50: loss 0.31, accuracy 0.92","...":"..."}

: heartbeat

event: done
data: {"id":"job-5f0c2a9be61d4873a0c4d7e2","status":"succeeded","reason":{"code":"completed","...":"..."}}
"""

LOG_LINE: dict[str, Any] = {
    "id": "1:0=5120,1=4096",
    "object": "log.line",
    "attempt": 1,
    "rank": 0,
    "timestamp": "2026-11-23T19:00:05.120Z",
    "text": "step 50 loss 0.31",
}

LOG_STREAM = """\
event: log
id: 1:0=5120,1=4096
data: {"object":"log.line","attempt":1,"rank":0,"timestamp":"2026-11-23T19:00:05.120Z","text":"step 50 loss 0.31","...":"..."}

event: done
data: {"id":"job-5f0c2a9be61d4873a0c4d7e2","status":"succeeded"}
"""

SERIES: dict[str, Any] = {
    "id": "train/loss",
    "object": "series",
    "key": "train/loss",
    "points": [
        {"step": 1, "value": 2.31, "timestamp": "2026-11-23T19:00:03.000Z"},
        {"step": 2, "value": "NaN", "timestamp": "2026-11-23T19:00:03.050Z"},
    ],
}

GRADIENTS: dict[str, Any] = {
    "object": "gradient_matrix",
    "job_id": JOB_ID,
    "layers": ["features.0", "features.3", "head"],
    "steps": [1, 2],
    "norms": [[0.71, 0.52, 0.9], [0.66, 0.5, 0.84]],
}

STEP: dict[str, Any] = {
    "object": "job.step",
    "job_id": JOB_ID,
    "step": 41,
    "epoch": 3,
    "attempt": 1,
    "recorded_at": "2026-11-23T19:00:05.000Z",
    "loss": 0.4617,
    "gradient_norm": 1.284,
    "learning_rate": 0.002,
    "samples": 5,
    "workers": 2,
    "accumulate": 1,
    "quarantined": [17],
    "ranks": [
        {"rank": 0, "samples": 3, "microbatches": [3], "indices": [153, 466, 321], "left_out": 0,
         "names": ["/data/cells/benign/0153.png", "/data/cells/benign/0466.png", "/data/cells/malignant/0041.png"]},
        {"rank": 1, "samples": 2, "microbatches": [2], "indices": [129], "left_out": 1, "names": ["/data/cells/benign/0129.png"]},
    ],
}  # fmt: skip

_FINDING: dict[str, Any] = {
    "code": "lr_too_high",
    "severity": "critical",
    "first_bad_step": 41,
    "layer": "features.3",
    "rank": None,
    "evidence": {"first_loss": 2.31, "loss": 11.4, "largest_update_ratio": 0.62},
    "explanation": "The loss is 11.4 after 2.31 at the start, first off at step 41, with updates of up to 0.62 of the weights in one step.",
    "suggestion": "Go back to the last healthy weights and lower optimizer.learning_rate to a third or a tenth, with a new warm-up",
    "consequences": ["exploding_gradient in features.0"],
}

HEALTH: dict[str, Any] = {
    "object": "job.health",
    "job_id": JOB_ID,
    "verdict": "critical",
    "sentence": _FINDING["explanation"],
    "findings": [_FINDING],
    "history": [{"event": "raised", "at": "2026-11-23T19:00:06.200Z", "step": 52, "sequence": 14, "finding": _FINDING}],
    "facts": {"total_steps": 240, "optimizer": "adamw", "learning_rate": 2.0, "schedule": {"0": 0.1, "1": 0.0}},
    "watching": {"share": 0.0121, "budget": 0.02, "probes": 31, "last_probe_step": 236},
}

REPAIRS: dict[str, Any] = {
    "object": "job.repairs",
    "job_id": JOB_ID,
    "mode": "repair",
    "allow": ["live"],
    "repairs": [
        {
            "number": 1, "state": "kept", "step": 54, "code": "lr_too_high", "consent": "live",
            "words": "went back to the weights from before it began, and leaves out the batches since, clips the gradient's norm at 2.1, "
            "multiplies the learning rate by 0.02, with a new warm-up",
            "rewind": 48, "rate": 0.02, "learning_rate": None, "clip": 2.1, "patches": None, "instead_of": None,
            "before": {"train/loss": 11.4}, "after": {"train/loss": 0.83}, "ended": 84, "finding": _FINDING,
        }
    ],
    "skipped_updates": 0,
    "not_repaired": [],
    "lost_steps": 14,
    "lost_worker_hours": 0.0004,
    "saved_worker_hours": 0.0052,
}  # fmt: skip

USAGE: dict[str, Any] = {
    "object": "usage", "project": "default", "jobs": 41, "repaired_jobs": 3, "trained_worker_hours": 212.5,
    "lost_worker_hours": 9.2, "saved_worker_hours": 31.7, "lost_steps": 18230,
}  # fmt: skip

ASKED: dict[str, Any] = {
    "object": "job.request",
    "id": "01795766462000000000-5f0c2a9e",
    "job_id": JOB_ID,
    "kind": "undo",
    "number": 1,
}

STEERED: dict[str, Any] = {**ASKED, "kind": "steer", "number": None}

QUARANTINE: dict[str, Any] = {
    "object": "job.quarantine",
    "job_id": JOB_ID,
    "samples": 455,
    "left_out": [{"sample": 17, "name": "row 21 of /data/cells.csv", "since_step": 54, "repair": 1}],
}

QUARANTINE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Samples by their index in the training set, or by their name as a step shows it.",
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/QuarantineChange"},
                "examples": {
                    "out": {"summary": "Two samples less", "value": {"leave_out": [17, "row 21 of /data/cells.csv"]}},
                    "in": {"summary": "One of them again", "value": {"take_in": [17]}},
                },
            }
        },
    }
}

DIAGNOSIS: dict[str, Any] = {
    "object": "job.diagnosis",
    "job_id": JOB_ID,
    "verdict": "critical",
    "sentence": _FINDING["explanation"],
    "findings": [_FINDING],
    "timeline": [{"step": 54, "event": "raised", "finding": _FINDING}],
}

PROBES: dict[str, Any] = {
    "object": "probe_table",
    "job_id": JOB_ID,
    "layers": ["features.0", "head"],
    "activations": ["features.2"],
    "steps": [1, 2],
    "cost_shares": [None, 0.0121],
    "statistics": {"update_ratios": [[0.0021, 0.0047], [0.0019, None]], "silent": [[0.03], [0.0]]},
    "watching": {"share": 0.0121, "budget": 0.02, "probes": 31, "last_probe_step": 236},
}

HISTOGRAMS: dict[str, Any] = {
    "object": "gradient_histograms",
    "job_id": JOB_ID,
    "layer": "features.0",
    "lowest": -40,
    "steps": [1],
    "shares": [[0.0] * 25 + [0.1, 0.2, 0.4, 0.2, 0.1] + [0.0] * 18],
}

CHECKPOINT: dict[str, Any] = {
    "id": "ckpt-0000000100",
    "object": "checkpoint",
    "job_id": JOB_ID,
    "step": 100,
    "created_at": "2026-11-23T19:00:07.000Z",
    "bytes": 412,
    "metrics": {"eval/loss": 0.12},
    "verdict": "healthy",
    "files": [{"path": "state.json", "bytes": 412, "sha256": "9f86d081884c7d659a2feaa0c55ad015" * 2}],
}

FILE: dict[str, Any] = {
    "id": FILE_ID,
    "object": "file",
    "bytes": 4120,
    "created_at": 1795633200,
    "filename": "my-task.zip",
    "purpose": "bundle",
    "status": "processed",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015" * 2,
}

DELETED_FILE: dict[str, Any] = {"id": FILE_ID, "object": "file", "deleted": True}

MODEL_FILE: dict[str, Any] = {
    "id": "model.safetensors",
    "object": "model.file",
    "path": "model.safetensors",
    "bytes": 148120,
}

ARTIFACT: dict[str, Any] = {
    "id": "step-0000000100/samples.txt",
    "object": "artifact",
    "job_id": JOB_ID,
    "path": "step-0000000100/samples.txt",
    "step": 100,
    "name": "samples.txt",
    "bytes": 1482,
    "media_type": "text/plain; charset=utf-8",
    "created_at": "2026-11-23T19:00:07.000Z",
}

_AMOUNT = {"cpus": 2.0, "gpus": 0.0, "memory": 8589934592}

_NODE: dict[str, Any] = {
    "id": NODE_ID,
    "address": "127.0.0.1",
    "total": _AMOUNT,
    "draining": False,
    "cordoned": False,
    "reason": None,
    "cordoned_at": None,
}

CLUSTER: dict[str, Any] = {
    "object": "cluster",
    "reachable": True,
    "message": None,
    "updated_at": "2026-11-23T19:00:05.000Z",
    "nodes": [_NODE],
    "used": _AMOUNT,
    "scheduler": {"alive": True, "seen_at": "2026-11-23T19:00:05.000Z"},
    "queued": 1,
    "active": 1,
}

_CORDONED = {"draining": True, "cordoned": True, "reason": "new memory", "cordoned_at": "2026-11-23T19:00:04.000Z"}
CORDONED_CLUSTER: dict[str, Any] = CLUSTER | {"nodes": [_NODE | _CORDONED]}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    """The list envelope around one item."""
    return {"object": "list", "data": [item], "has_more": False, "first_id": item["id"], "last_id": item["id"]}
