# SPDX-License-Identifier: Apache-2.0
"""Shares of about the same size, and plans that notice when the world has changed."""

import pytest

from bt_megatron.errors import DataError
from data_prep.streams import STDIN
from data_prep.tokenizer import TextTokenizer
from data_prep.worklist import load_plan, make_plan, save_plan, task_folder

SIZES = {"a": 50, "b": 900, "c": 400, "d": 450, "e": 60, "f": 0}


@pytest.fixture
def tokenizer(tokenizer_file):
    return TextTokenizer(tokenizer_file, engine="tokenizers")


@pytest.fixture
def inputs(make_input):
    return [make_input(f"{name}.jsonl", b"x" * size) for name, size in SIZES.items()]


def plan_of(inputs, tokenizer, tasks):
    return make_plan(inputs, tokenizer, tasks=tasks, eos="<|endoftext|>")


@pytest.mark.parametrize(("tasks", "expected"), [(1, 1), (2, 2), (6, 6), (50, 6)])
def test_every_input_is_in_one_task(inputs, tokenizer, tasks, expected):
    plan = plan_of(inputs, tokenizer, tasks)
    assert len(plan.tasks) == expected
    paths = [planned.path for task in plan.tasks for planned in task]
    assert sorted(paths) == sorted(str(path.resolve()) for path in inputs)


def test_tasks_are_of_one_size_and_do_not_depend_on_the_order(inputs, tokenizer):
    plan = plan_of(inputs, tokenizer, 2)
    assert [sum(planned.size for planned in task) for task in plan.tasks] == [950, 910]
    assert plan_of(inputs[::-1], tokenizer, 2) == plan


def test_plan_is_read_as_it_was_written(inputs, tokenizer, tmp_path):
    plan = plan_of(inputs, tokenizer, 3)
    save_plan(plan, tmp_path / "out/plan.json")
    assert load_plan(tmp_path / "out/plan.json") == plan
    assert task_folder(tmp_path / "out/plan.json", 2) == tmp_path / "out/tasks/00002"


def test_changes_since_the_plan_are_refused(inputs, tokenizer, tmp_path):
    path = tmp_path / "plan.json"
    plan = plan_of(inputs, tokenizer, 6)
    (task,) = [i for i, task in enumerate(plan.tasks) if task[0].path == str(inputs[0])]
    assert plan.inputs_of(task, plan=path) == [inputs[0]]
    inputs[0].write_bytes(b"longer" * 50)
    with pytest.raises(DataError, match=r"a\.jsonl - has 300 bytes, 50 bytes when"):
        plan.inputs_of(task, plan=path)
    inputs[0].unlink()
    with pytest.raises(DataError, match=r"a\.jsonl - is gone"):
        plan.inputs_of(task, plan=path)
    with pytest.raises(DataError, match=r"has no task 6, but 0 to 5 - submit with --array=0-5"):
        plan.inputs_of(6, plan=path)


def test_other_tokenizer_and_broken_plan_are_refused(inputs, tokenizer, tmp_path, tokenizer_file):
    path, own = tmp_path / "plan.json", tmp_path / "own.json"
    own.write_bytes(tokenizer_file.read_bytes())
    save_plan(plan_of(inputs, TextTokenizer(own, engine="tokenizers"), 2), path)
    own.write_bytes(tokenizer_file.read_bytes() + b"\n")
    with pytest.raises(DataError, match=r"own\.json - has sha256 .* plan again"):
        load_plan(path)
    path.write_text('{"format": 1}')
    with pytest.raises(DataError, match=r"plan\.json"):
        load_plan(path)
    with pytest.raises(DataError, match=r"none\.json - not found"):
        load_plan(tmp_path / "none.json")


def test_standard_input_cannot_be_planned(tokenizer):
    with pytest.raises(DataError, match="cannot be shared out"):
        plan_of([STDIN], tokenizer, 2)
