# SPDX-License-Identifier: Apache-2.0
"""Loss curves: the right numbers, and a picture that holds them."""

import numpy as np
import orjson
import pytest
from matplotlib import image

from bt_megatron.errors import DataError
from bt_megatron.observe.plot import plot_loss, read_curve, smooth
from bt_megatron.observe.run_folder import RunFolder


def make_run(path, *, scale: float = 1.0, baselines: dict[str, float] | None = None) -> RunFolder:
    folder = RunFolder(path)
    path.mkdir()
    lines = []
    for step in range(10, 1001, 10):
        loss = None if step == 500 else scale * float(2 + 8 * np.exp(-step / 200))
        lines.append({"step": step, "train/loss": loss})
        if step % 250 == 0:
            lines.append({"step": step, "validation/loss": scale * 2.5})
    folder.metrics.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    if baselines:
        models = {name: {"loss": loss} for name, loss in baselines.items()}
        folder.baselines.write_bytes(orjson.dumps({"models": models}))
    return folder


def test_a_curve_holds_what_was_logged(tmp_path):
    curve = read_curve(make_run(tmp_path / "a", baselines={"unigram": 7.1}))
    assert curve.name == "a"
    assert curve.steps[0] == 10
    assert len(curve.steps) == len(curve.losses) == 100
    assert np.flatnonzero(np.isnan(curve.losses)).tolist() == [49]
    assert curve.validation == ((250, 2.5), (500, 2.5), (750, 2.5), (1000, 2.5))
    assert curve.baselines == {"unigram": 7.1}


def test_smoothing_keeps_a_constant_and_steps_over_gaps():
    steps, losses = np.arange(1.0, 101.0), np.full(100, 3.0)
    losses[[0, 40]] = np.nan
    np.testing.assert_allclose(smooth(steps, losses), 3.0)


def test_smoothing_is_the_weighted_mean_of_its_docstring():
    random = np.random.default_rng(0)
    steps, losses = np.cumsum(random.integers(1, 9, size=50)).astype(float), random.random(50)
    width = 0.02 * (steps[-1] - steps[0])
    weights = np.exp(-np.abs(steps[:, None] - steps) / width)  # [n, n]
    expected = weights @ losses / weights.sum(axis=1)
    np.testing.assert_allclose(smooth(steps, losses), expected, rtol=1e-12)


def test_smoothing_does_not_lag_behind_a_descent():
    steps = np.arange(1.0, 1001.0)
    losses = 10 - steps / 200
    np.testing.assert_allclose(smooth(steps, losses)[200:800], losses[200:800], rtol=1e-4)


def test_a_run_of_nothing_but_nan_has_no_line():
    assert np.isnan(smooth(np.arange(3.0), np.full(3, np.nan))).all()


def test_the_smallest_run_is_one_step():
    assert smooth(np.array([10.0]), np.array([4.0])).tolist() == [4.0]


def test_several_runs_fit_into_one_picture(tmp_path):
    runs = [make_run(tmp_path / "a", baselines={"bigram": 4.2}), make_run(tmp_path / "b", scale=2)]
    for folders, output in ((runs[:1], "one.png"), (runs, "two.png")):
        plot_loss(folders, tmp_path / output)
    one, two = image.imread(tmp_path / "one.png"), image.imread(tmp_path / "two.png")
    assert one.shape[:2] == two.shape[:2] == (600, 1080)
    assert (one != two).any()
    assert one[..., :3].std() > 0.05  # something is drawn


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", b'{"step": 1, "validation/loss": 2.0}\n', "no training loss"),
        ("metrics.jsonl", b"not json\n", "line 1"),
        ("baselines.json", b'{"unigram": 3}', "baselines.json: not what"),
    ],
    ids=["no loss", "damaged", "foreign baselines"],
)
def test_what_cannot_be_drawn_is_named(tmp_path, file, content, message):
    folder = make_run(tmp_path / "a")
    (folder.path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        plot_loss([folder], tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
