# SPDX-License-Identifier: Apache-2.0
"""Every file of configs/ loads, plans, and has the numbers of the paper and the reference."""

from pathlib import Path

import pytest

from bt_megatron.config.load import load_model, load_run
from bt_megatron.config.params import count_parameters
from bt_megatron.config.plan import make_plan
from bt_megatron.config.schema import DecoderConfig, ModelConfig
from bt_megatron.training.schedule import learning_rate

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = sorted((CONFIGS / "model").glob("*.yaml"))
RUNS = sorted((CONFIGS / "run").glob("*.yaml"))

# non-embedding, expansion and total parameters, counted in the reference's own models
# (total without its unused block-decoder table); vanilla-31m and -1.4b by arithmetic.
PARAMETERS = {
    "block-33m": (4_739_584, 131_584, 33_846_272),
    "block-77m": (18_916_352, 525_312, 77_391_872),
    "block-170m": (85_057_536, 1_181_184, 173_164_032),
    "block-420m": (302_313_472, 2_099_200, 420_313_088),
    "block-1.0b": (805_740_544, 8_392_704, 1_045_934_080),
    "block-1.2b": (1_208_606_720, 8_392_704, 1_448_800_256),
    "megabyte-5m": (4_742_656, 131_584, 20_971_520),
    "megabyte-19m": (18_922_496, 525_312, 51_642_368),
    "megabyte-85m": (90_578_688, 1_574_912, 153_323_264),
    "ablation-lookup-prefix": (85_057_536, 590_592, 172_573_440),
    "ablation-roberta-prefix": (85_057_536, 590_592, 179_081_728),
    "ablation-cls-sum": (85_057_536, 2_362_368, 180_656_896),
    "ablation-cls-cross-attention": (99_166_848, 2_362_368, 156_132_736),
    "ablation-b1": (85_057_536, 590_592, 201_548_544),
    "uptrain-85m": (85_057_536, 1_181_184, 204_499_200),
    "uptrain-300m": (302_313_472, 2_099_200, 463_141_888),
    "uptrain-800m": (805_740_544, 8_392_704, 1_139_980_288),
    "vanilla-31m": (4_739_072, 0, 30_494_720),
    "vanilla-70m": (18_915_328, 0, 70_426_624),
    "vanilla-160m": (85_056_000, 0, 162_322_944),
    "vanilla-410m": (302_311_424, 0, 405_334_016),
    "vanilla-1.4b": (1_208_602_624, 0, 1_414_647_808),
}

# learning rate, sequences per step, steps, warm-up, kept checkpoints, padding, end of the cosine
RECIPES = {
    "block-33m": (1e-3, 256, 572_000, 3000, 10_000, True, 572_000),
    "block-77m": (1e-3, 256, 572_000, 3000, 10_000, True, 572_000),
    "block-170m": (6e-4, 256, 572_000, 3000, 10_000, True, 572_000),
    "block-420m": (3e-4, 256, 572_000, 3000, 10_000, False, 572_000),
    "block-1.0b": (3e-4, 512, 286_000, 1500, 5000, False, 286_000),
    "block-1.2b": (2e-4, 512, 286_000, 1500, 5000, False, 286_000),
    "block-170m-flop-v70": (6e-4, 256, 266_317, 3000, 10_000, True, 266_317),
    "block-420m-flop-v70": (3e-4, 256, 98_120, 3000, 8000, False, 98_120),
    "block-1.0b-flop-v70": (3e-4, 512, 19_300, 1500, 5000, False, 19_300),
    "block-1.2b-flop-v70": (2e-4, 512, 13_530, 1500, 4000, False, 13_530),
    "megabyte-5m": (1e-3, 256, 572_000, 3000, 10_000, False, 572_000),
    "megabyte-19m": (1e-3, 256, 572_000, 3000, 10_000, False, 572_000),
    "megabyte-85m": (6e-4, 256, 572_000, 3000, 10_000, False, 572_000),
    "ablation-lookup-prefix": (6e-4, 256, 20_000, 3000, 5000, False, 572_000),
    "ablation-roberta-prefix": (6e-4, 256, 20_000, 3000, 5000, False, 572_000),
    "ablation-cls-sum": (6e-4, 256, 50_000, 3000, 5000, False, 572_000),
    "ablation-cls-cross-attention": (6e-4, 256, 50_000, 3000, 5000, False, 572_000),
    "ablation-b1": (6e-4, 256, 572_000, 3000, 5000, True, 572_000),
    "uptrain-85m": (6e-4, 256, 57_200, 3000, 5000, True, 57_200),
    "uptrain-300m": (3e-4, 256, 57_200, 3000, 5000, True, 57_200),
    "uptrain-800m": (3e-4, 512, 28_600, 1500, 1250, True, 28_600),
    "vanilla-31m": (1e-3, 256, 572_000, 3000, 10_000, False, 572_000),
    "vanilla-70m": (1e-3, 256, 572_000, 3000, 10_000, False, 572_000),
    "vanilla-160m": (6e-4, 256, 572_000, 3000, 10_000, False, 572_000),
    "vanilla-410m": (3e-4, 256, 572_000, 3000, 10_000, False, 572_000),
}
OURS = {"demo"}

by_name = pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)


def test_the_tables_list_every_file():
    assert {path.stem for path in MODELS} == set(PARAMETERS)
    assert {path.stem for path in RUNS} == set(RECIPES) | OURS


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_parameters_equal_the_reference(path):
    counts = count_parameters(load_model(path))

    found = (counts.non_embedding, counts.expansion, counts.total)
    assert found == PARAMETERS[path.stem]
    assert f"{counts.total:,}" in path.read_text(), "the comment states the total"


def test_the_published_vanilla_31_file_builds_another_model():
    wide = DecoderConfig(num_layers=6, hidden_size=256, num_attention_heads=8, ffn_hidden_size=4096)
    counts = count_parameters(ModelConfig(architecture="vanilla", vocab_size=50304, decoder=wide))

    assert (counts.non_embedding, counts.total) == (14_194_688, 39_950_336)


@pytest.mark.parametrize("name", RECIPES)
def test_hyper_parameters_equal_the_reference(name):
    config = load_run([CONFIGS / f"run/{name}.yaml"]).config
    optimizer, data = config.optimizer, config.data

    assert (
        optimizer.lr,
        config.batch.global_batch_size,
        config.train.steps,
        optimizer.warmup_steps,
        config.checkpoint.keep_every_steps,
        data.pad_to_block_boundary,
        optimizer.decay_steps or config.train.steps,
    ) == RECIPES[name]
    assert data.random_left_padding == data.pad_to_block_boundary
    assert (optimizer.warmup, optimizer.min_lr_ratio) == ("linear", 0.1)
    assert (optimizer.adam_beta1, optimizer.adam_beta2) == (0.9, 0.95)
    assert (optimizer.adam_eps, optimizer.weight_decay, optimizer.clip_grad) == (1e-8, 0.1, 1.0)
    assert optimizer.decay_biases_and_norms
    assert (data.seq_length, config.train.precision, config.train.seed) == (2048, "bf16", 42)


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_trains_the_model_of_its_name(name):
    config = load_run([CONFIGS / f"run/{name}.yaml"]).config
    model = load_model(CONFIGS / f"model/{name.removesuffix('-flop-v70')}.yaml")

    assert config.model == model
    assert (config.checkpoint.initialize_from is not None) == name.startswith("uptrain")


@by_name
def test_every_run_plans_on_eight_processes_and_ours_on_two(path):
    config = load_run([path]).config
    plan = make_plan(config, 2 if path.stem in OURS else 8)

    assert config.name == path.stem
    assert plan.parameters.total > 1_000_000
    assert learning_rate(config.optimizer.warmup_steps, config.optimizer, config.train.steps) > 0


@pytest.mark.parametrize(
    ("names", "billions"),
    [
        (["block-33m", "block-1.2b", "megabyte-85m", "ablation-b1", "vanilla-410m"], 299.9),
        (["uptrain-85m", "uptrain-300m", "uptrain-800m"], 30.0),
        (["block-170m-flop-v70"], 139.6),
        (["block-420m-flop-v70"], 51.4),
        (["block-1.0b-flop-v70"], 20.2),
        (["block-1.2b-flop-v70"], 14.2),
        (["ablation-lookup-prefix", "ablation-roberta-prefix"], 10.5),
        (["ablation-cls-sum", "ablation-cls-cross-attention"], 26.2),
    ],
)
def test_token_budgets_equal_the_paper(names, billions):
    for name in names:
        plan = make_plan(load_run([CONFIGS / f"run/{name}.yaml"]).config, 8)
        assert round(plan.total_tokens / 1e9, 1) == billions


def test_paired_sizes_match_without_embeddings():
    """A block model and the vanilla model of its row have the same non-embedding size."""
    for block, vanilla in (
        ("block-33m", "vanilla-31m"),
        ("block-77m", "vanilla-70m"),
        ("block-170m", "vanilla-160m"),
        ("block-420m", "vanilla-410m"),
        ("block-1.2b", "vanilla-1.4b"),
    ):
        assert PARAMETERS[block][0] == pytest.approx(PARAMETERS[vanilla][0], rel=2e-4)


def test_uptraining_halves_fit_their_vanilla_model():
    """Both halves together have the depth and width of what they are made from."""
    pythia_1b = DecoderConfig(num_layers=16, hidden_size=2048, num_attention_heads=8)
    sources = {
        "uptrain-85m": load_model(CONFIGS / "model/vanilla-160m.yaml").decoder,
        "uptrain-300m": load_model(CONFIGS / "model/vanilla-410m.yaml").decoder,
        "uptrain-800m": pythia_1b,
    }
    for name, source in sources.items():
        model = load_model(CONFIGS / f"model/{name}.yaml")
        halves = (model.block_decoder, model.token_decoder)
        assert sum(half.num_layers for half in halves) == source.num_layers
        for half in halves:
            assert half.hidden_size == source.hidden_size
            assert half.num_attention_heads == source.num_attention_heads
