"""The verdict on a job: what is known of its data, and what its gradients show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_data(judged: Mapping[str, Any], data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A judgement of the gradients, together with the findings on the data, both as documents. The worst severity is the verdict.

    Data comes first among equals: it is a cause, what gradients show is a consequence.
    """
    order = ("critical", "warning", "note")
    findings = sorted([*data, *judged["findings"]], key=lambda each: order.index(each["severity"]))
    verdict, sentence = judged["verdict"], judged.get("sentence", "")
    if findings and findings[0]["severity"] != "note" and verdict != "critical":
        worst = findings[0]
        if worst["severity"] != verdict:
            verdict, sentence = worst["severity"], " ".join(filter(None, [worst["explanation"], sentence]))
    return {"verdict": verdict, "sentence": sentence, "findings": findings}
