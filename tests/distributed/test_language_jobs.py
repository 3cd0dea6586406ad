"""Language models in the training loop: any number of workers, a first job and adapters on it, what comes out opens in the libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.processes import Processes
from tests.distributed.toys import Memory, context_in
from workers.export import _load_pyfunc
from workers.membership import Alone, MeetingPoint
from workers.reports import Outcome, ReasonCode
from workers.sources.problems import BadDataError
from workers.spec import parse_spec
from workers.train import train

pytestmark = pytest.mark.distributed

WORDS = "the quick brown fox jumps over the lazy dog and runs away from the slow red cat\n"


def job(data: dict[str, Any], model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    task = {"kind": "language_model", "data": data, "model": model, "block_size": 16, **parts.pop("task", {})}
    training = {"steps": 6, "batch_size": 8, "clip_norm": 1.0, **parts.pop("training", {})}
    optimizer = {"learning_rate": 1e-2, "weight_decay": 0.1}
    workers = {"threads": 1, **parts.pop("workers", {})}
    return {"name": "words", "task": task, "training": training, "optimizer": optimizer, "workers": workers, **parts}


def text(folder: Path) -> dict[str, Any]:
    path = folder / "words.txt"
    path.write_text(WORDS * 30)
    return {"source": "text", "path": str(path)}


def chats(folder: Path) -> dict[str, Any]:
    path = folder / "chats.jsonl"
    rows = [{"prompt": f"{number} cats", "completion": " run" * (number % 7 + 1)} for number in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "path": str(path)}


GPT = {"architecture": "gpt2", "layers": 2, "heads": 2, "width": 16}
# 6 N a token (two blocks of 12 squares of the width, the output layer), 12 x layers x width x length for attention.
# Of a block of 16 tokens, by the size of the vocabulary: 26 letters, space, end of line and end of text; or 256 bytes and the end of text.
GPT_SAMPLE_FLOPS = {size: 16 * (6 * (2 * 12 * 16**2 + 16 * size) + 12 * 2 * 16 * 16) for size in (29, 257)}
LLAMA = {"architecture": "llama", "layers": 2, "heads": 2, "width": 16}


def run_job(
    rank: int, world_size: int, document: dict[str, Any], folder: Path, meeting: MeetingPoint = None
) -> tuple[Outcome, Memory]:
    memory = Memory()
    context = context_in(folder, memory, Alone(rank, world_size, store=meeting))
    return train(parse_spec(document), context), memory


run_job.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (text, {"task": {"tokenizer": {"kind": "char"}}}),
        (chats, {"training": {"accumulate": 2}}),
        (chats, {"workers": {"strategy": "fsdp"}}),
    ],
    ids=["text", "packed documents, accumulation", "packed documents, fsdp"],
)
def test_any_number_of_workers_gives_the_same_curve(
    processes: Processes, tmp_path: Path, source: Any, parts: dict[str, Any]
) -> None:
    """Documents have different numbers of learnt tokens: catches a mean over samples or workers."""
    data = source(tmp_path)
    runs = {}
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        document = job(data, GPT, **{**parts, "workers": {**parts.get("workers", {}), "count": count}})
        runs[count] = processes.run(count, tmp_path / str(count), run_job, document, tmp_path / str(count))
    alone, first = runs[1][0][1], runs[2][0][1]
    assert len(alone.series("train/loss")) == len(alone.series("train/tokens_per_second")) == 6
    for row in [*alone.rows.values(), *first.rows.values()]:
        if "train/loss" in row:
            flops = row["train/samples_per_second"] * GPT_SAMPLE_FLOPS[29 if source is text else 257]
            assert row["system/model_flops_per_second"] == pytest.approx(flops)
        assert "system/mfu" not in row  # a processor has no declared peak
    for key in ("train/loss", "gradient/norm", "eval/loss", "eval/accuracy"):
        np.testing.assert_allclose(first.series(key), alone.series(key), rtol=1e-4, err_msg=key)
    assert alone.series("eval/perplexity") == pytest.approx(np.exp(alone.series("eval/loss")))
    assert len({outcome.detail["parameters_sha256"] for outcome, _ in runs[2]}) == 1


def test_a_first_job_and_adapters_on_it(tmp_path: Path) -> None:
    """The folders of both open with the libraries' own calls, and answer as the trained models did."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first, second = tmp_path / "first", tmp_path / "second"
    samples = {"prompts": ["the quick"], "max_new_tokens": 5, "temperature": 0}
    outcome, memory = run_job(0, 1, job(text(tmp_path), LLAMA, task={"samples": samples}), first)
    assert outcome.code is ReasonCode.COMPLETED
    base = AutoModelForCausalLM.from_pretrained(first / "model")
    tokenizer = AutoTokenizer.from_pretrained(first / "model")
    assert base.config.vocab_size == len(tokenizer) == 257
    tokens = torch.tensor([tokenizer("the quick brown fox")["input_ids"]])
    greedy = base.generate(tokens[:, :9], max_new_tokens=5, do_sample=False, pad_token_id=256)
    answer = _load_pyfunc(str(first / "model")).predict(np.array(["the quick"]))
    assert answer["completion"].tolist() == [tokenizer.decode(greedy[0, 9:])]

    lora = {"checkpoint": str(first / "model"), "lora": {"rank": 2, "alpha": 4}}
    outcome, memory = run_job(0, 1, job(chats(tmp_path), lora, task={"samples": samples}), second)
    assert outcome.code is ReasonCode.COMPLETED
    losses = memory.series("train/loss")
    assert losses[-1] < losses[0]
    assert all("lora" in layer for layer in memory.layers)
    assert {path.name for path in (second / "model").iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "MLmodel",
    }
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(first / "model"), second / "model")
    also = AutoModelForCausalLM.from_pretrained(second / "model")
    with torch.no_grad():
        expected = adapted(tokens).logits
        torch.testing.assert_close(also(tokens).logits, expected)
        assert not torch.allclose(base(tokens).logits, expected, atol=1e-3), "the adapters do something"
    assert len(_load_pyfunc(str(second / "model")).predict(np.array(["the", "a"]))) == 2


def test_adapters_on_sharded_weights(processes: Processes, tmp_path: Path) -> None:
    """Most parameters are frozen there; the samples are drawn by all ranks together."""
    run_job(0, 1, job(text(tmp_path), GPT, training={"steps": 1}), tmp_path / "first")
    lora = {"checkpoint": str(tmp_path / "first" / "model"), "lora": {"rank": 2}}
    samples = {"prompts": ["1 cats"], "max_new_tokens": 20}
    curves = {}
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        document = job(chats(tmp_path), lora, workers={"count": count, "strategy": "fsdp"}, task={"samples": samples})
        curves[count] = processes.run(count, tmp_path / str(count), run_job, document, tmp_path / str(count))[0][1]
    for key in ("train/loss", "gradient/norm", "eval/loss"):
        np.testing.assert_allclose(curves[2].series(key), curves[1].series(key), rtol=1e-4, err_msg=key)


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    data, model = text(tmp_path), tmp_path / "first" / "model"
    run_job(0, 1, job(data, GPT, task={"tokenizer": {"kind": "char"}}, training={"steps": 1}), tmp_path / "first")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text("{")
    for changes, says in (
        ({"task": {"block_size": 17}}, "task.block_size: 17 is longer than the checkpoint's 16"),
        (
            {"task": {"tokenizer": {"kind": "file", "path": str(tmp_path / "other")}}},
            "task.tokenizer.path: there is no tokenizer at",
        ),
        (
            {"task": {"samples": {"prompts": ["the", "Öl"]}}},
            r"task.samples.prompts\[1\]: 'Ö' occurs nowhere in the data",
        ),
        ({"task": {"model": {"checkpoint": str(tmp_path / "none")}}}, "task.model.checkpoint: there is no"),
        ({"task": {"model": {"checkpoint": str(tmp_path)}}}, "task.model.checkpoint: there is no"),
        (
            {"task": {"model": {"checkpoint": str(model), "lora": {"target_modules": ["nothing"]}}}},
            "task.model.lora.target_modules: .*nothing",
        ),
    ):
        with pytest.raises(BadDataError, match=f"^{says}"):
            run_job(0, 1, job(data, {"checkpoint": str(model)}, **changes), tmp_path / "second")


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    run_job(0, 1, job(text(tmp_path), GPT), tmp_path)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "lm_head.weight" not in names
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.lm_head.weight is model.transformer.wte.weight
