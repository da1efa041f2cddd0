# SPDX-License-Identifier: Apache-2.0
"""lm-eval's own tasks on documents of ours: what a model that knows the answers gets."""

import json
from importlib.metadata import PackageNotFoundError

import pytest

from bt_megatron.errors import ConfigError, DataError
from bt_megatron.evaluation import zero_shot
from bt_megatron.evaluation.exported_model import read_tokenizer
from bt_megatron.evaluation.zero_shot import TASKS, measure_zero_shot, require_lm_eval
from tests.scripted_model import ScriptedModel

CHOICES = {"text": ["the fox", "a dog"], "label": ["A", "B"]}
RIGHT = {
    "lambada_openai": ({"text": "the quick brown the fox"}, " fox"),
    "hellaswag": (
        {
            "ind": 1,
            "activity_label": "Jumping",
            "ctx_a": "Over it.",
            "ctx_b": "he",
            "ctx": "Over it. he",
            "endings": ["the fox", "a dog", "b", "c"],
            "source_id": "x",
            "split": "val",
            "split_type": "indomain",
            "label": "0",
        },
        " the fox",
    ),
    "piqa": ({"goal": "How?", "sol1": "the fox", "sol2": "a dog", "label": 0}, " the fox"),
    "arc_easy": (
        {"id": "1", "question": "Who?", "choices": CHOICES, "answerKey": "A"},
        " the fox",
    ),
    "sciq": (
        {
            "question": "Who?",
            "distractor1": "a dog",
            "distractor2": "b",
            "distractor3": "c",
            "correct_answer": "the fox",
            "support": "",
        },
        " the fox",
    ),
    "winogrande": (
        {"sentence": "It was _ quick.", "option1": "fox", "option2": "dog", "answer": "1"},
        "It was fox",
    ),
}
"""A document of each task, and what only a text with the right answer holds."""


@pytest.fixture(scope="module")
def tokenizer(small_export):
    return read_tokenizer(small_export())


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_knows_the_answers(tmp_path, monkeypatch, tokenizer, task):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install '.[evaluate]')")
    document, right = RIGHT[task]
    lines = [json.dumps(document)] * 5
    (tmp_path / f"{task}.jsonl").write_text("\n".join(lines) + "\n")

    def rule(known, token):
        return -0.1 if right in tokenizer.decode([*known, token]) else -1.0

    steps = []
    found = measure_zero_shot(
        ScriptedModel(max_length=256, rule=rule),
        tokenizer,
        data=tmp_path,
        task=task,
        limit=3,
        on_progress=lambda *at: steps.append(at),
    )
    assert found.name == f"zero-shot/{task}"
    assert found.detail["samples"] == 3
    assert found.detail["of"] == 5
    assert found.detail["split"] == TASKS[task].split
    assert steps[-1][0] == steps[-1][1] > 0
    if task == "lambada_openai":  # the scripted model is never greedy
        assert found.metrics["acc"] == 0.0
        assert found.metrics["perplexity"] > 1
    else:
        assert found.metrics["acc"] == 1.0
        assert found.detail["standard_error"]["acc"] == 0.0


def test_documents_that_are_not_there(tmp_path, tokenizer):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install '.[evaluate]')")
    with pytest.raises(DataError, match=r"piqa.jsonl: not there. Run python -m tools.fetch_tasks"):
        measure_zero_shot(
            ScriptedModel(),
            tokenizer,
            data=tmp_path,
            task="piqa",
            limit=None,
            on_progress=lambda *at: None,
        )


def test_without_lm_eval_it_is_said_how_to_get_it(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(zero_shot, "version", absent)
    with pytest.raises(ConfigError, match=r"pip install '.\[evaluate\]', or choose other parts"):
        require_lm_eval()
