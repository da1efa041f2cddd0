# SPDX-License-Identifier: Apache-2.0
"""What may change between a saved run and its continuation."""

import pytest

from bt_megatron.checkpoint.resume import (
    CLASSES,
    Difference,
    classify,
    compare_for_resume,
    require_resumable,
)
from bt_megatron.config.convert import field_types, schema_keys, split_optional
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import ConfigError


def test_every_key_of_the_schema_has_a_class():
    unclassified = [key for key in schema_keys(RunConfig) if not _known(key)]

    assert unclassified == []
    assert len(schema_keys(RunConfig)) > 80


def _known(key):
    try:
        return bool(classify(key))
    except KeyError:
        return False


def test_every_class_is_about_the_schema():
    for key in CLASSES:
        cls = RunConfig
        for part in key.split("."):
            assert part in field_types(cls), key
            cls, _ = split_optional(field_types(cls)[part])


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("name", "other", "free"),
        ("runs_dir", "elsewhere", "free"),
        ("log.interval_steps", 7, "free"),
        ("log.mlflow.experiment", "other", "free"),
        ("evaluation.interval_steps", 7, "free"),
        ("checkpoint.keep_last", 5, "free"),
        ("checkpoint.initialize_from", "weights", "refused"),
        ("faults.hung_rank_seconds", 300, "free"),
        ("layout.tp", 2, "allowed"),
        ("layout.pp_cut", "Ebb|ttL", "allowed"),
        ("batch.micro_batch_size", 4, "allowed"),
        ("batch.global_batch_size", 32, "refused"),
        ("model.vocab_size", 1024, "refused"),
        ("model.token_decoder.prefix_length", 3, "refused"),
        ("data.seed", 7, "refused"),
        ("data.order", "stored", "refused"),
        ("data.loader", "dali", "allowed"),
        ("data.index_dir", "elsewhere", "free"),
        ("optimizer.lr", 1.0, "refused"),
        ("optimizer.decay_steps", 90, "refused"),
        ("train.seed", 7, "refused"),
        ("train.precision", "fp32", "refused"),
        ("train.steps", 200, "refused"),
        ("memory.recompute", "selective", "allowed"),
        ("kernels.head_chunk_tokens", 7, "allowed"),
        ("kernels.fp8", "current", "refused"),
    ],
)
def test_a_difference_has_the_class_of_its_key(make_run, key, value, kind):
    (difference,) = compare_for_resume(make_run(), make_run({key: value}))

    assert (difference.key, difference.new, difference.kind) == (key, value, kind)


def test_equal_runs_do_not_differ(make_run):
    assert compare_for_resume(make_run(), make_run()) == []


def test_a_section_that_appears_is_listed_key_by_key(make_run):
    differences = compare_for_resume(make_run({"log.mlflow": None}), make_run())

    assert {item.key: (item.old, item.new) for item in differences} == {
        "log.mlflow.experiment": (None, "bt-megatron"),
        "log.mlflow.system_metrics": (None, True),
    }
    assert {item.kind for item in differences} == {"free"}


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        (
            {"optimizer.decay_steps": 100},
            {"optimizer.decay_steps": 100, "train.steps": 150},
            {"allowed"},
        ),
        (
            {"optimizer.decay_steps": 100},
            {"optimizer.decay_steps": 100, "train.steps": 50},
            {"allowed"},
        ),
        ({}, {"optimizer.decay_steps": 100, "train.steps": 150}, {"allowed"}),
        ({}, {"optimizer.decay_steps": 150, "train.steps": 150}, {"refused"}),
        (
            {"optimizer.decay_steps": 100},
            {"optimizer.decay_steps": None, "train.steps": 150},
            {"refused"},
        ),
    ],
    ids=["longer", "shorter", "made-explicit", "stretched", "dropped"],
)
def test_the_length_may_change_only_under_the_same_schedule(make_run, old, new, kinds):
    differences = compare_for_resume(make_run(old), make_run(new))

    assert {item.kind for item in differences} == kinds
    assert "train.steps" in {item.key for item in differences}


def test_refused_differences_stop_the_run_unless_allowed_by_hand(make_run):
    changes = {"optimizer.lr": 1.0, "train.steps": 200, "layout.tp": 2}
    differences = compare_for_resume(make_run(), make_run(changes))

    with pytest.raises(ConfigError) as caught:
        require_resumable(differences)
    message = str(caught.value)
    assert "optimizer.lr: saved 0.0003, now 1.0" in message
    assert "(100 if it was not set)" in message
    assert "--resume-allow optimizer.lr --resume-allow train.steps" in message
    assert "layout.tp" not in message

    with pytest.raises(ConfigError, match="train.steps"):
        require_resumable(differences, allow=["optimizer.lr"])
    require_resumable(differences, allow=["optimizer.lr", "train.steps"])


def test_a_difference_reads_well():
    assert str(Difference("layout.tp", 1, 2, "allowed")) == "layout.tp: 1 -> 2 (allowed)"
