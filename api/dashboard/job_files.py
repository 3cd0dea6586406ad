"""Job files to start from, and what is wrong with one, before anything is posted."""

from __future__ import annotations

from collections.abc import Mapping

from workers.jobfile import JobFileError, parse_job_text
from workers.problems import SpecError
from workers.spec import parse_spec

EXAMPLES: Mapping[str, str] = {
    "digits, two workers": """\
# Handwritten digits (8 x 8 pixels, shipped with scikit-learn).
name: digits
task:
  kind: image_classification
  data: {source: digits}
  model: {architecture: cnn, channels: [32, 64], normalization: batch}
training: {epochs: 15, batch_size: 64, clip_norm: 5.0}
optimizer: {name: adamw, learning_rate: 3e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_steps: 20}
workers: {count: 2}
evaluation: {every_steps: 23, best: eval/accuracy, mode: max}
checkpoint: {every_steps: 115}
""",
    "a table": """\
# Breast cancer, 569 rows of 30 measurements, shipped with scikit-learn.
name: breast-cancer
task:
  kind: tabular
  data: {source: breast_cancer}
training: {epochs: 40, batch_size: 64}
optimizer: {name: adamw, learning_rate: 1e-3}
""",
    "a deep sigmoid network": """\
# Its gradients vanish on the way back to the input: look at the gradient flow.
name: vanishing
task:
  kind: image_classification
  data: {source: digits}
  model: {architecture: mlp, hidden: [64, 64, 64, 64, 64, 64], activation: sigmoid}
training: {epochs: 20, batch_size: 64}
optimizer: {name: sgd, learning_rate: 0.05}
""",
}


def problems_of(text: str) -> list[tuple[str, str]]:
    """(path of the field, what is wrong), all at once; empty for a valid job file of YAML or JSON."""
    suffix = ".json" if text.lstrip().startswith("{") else ".yaml"
    try:
        parse_spec(parse_job_text(text, suffix))
    except JobFileError as error:
        return [("", str(error))]
    except SpecError as error:
        return [(p.path, f"{p.message}{f' (got {p.value})' if p.value is not None else ''}") for p in error.problems]
    return []
