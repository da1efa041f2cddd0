# SPDX-License-Identifier: Apache-2.0
"""What a user decides, as frozen values. What follows from it is in `plan.py`.

No torch here: this package is imported on login nodes. Field docstrings are
the help text. Cross-field rules are in `rules.py`.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedderConfig:
    """How the k tokens of a block become one vector (paper 2.2, appendix F)."""

    kind: Literal["lookup", "roberta", "roberta_cls"] = "lookup"
    """lookup: a table; roberta: an encoder over the block; roberta_cls: its CLS outputs only."""
    hidden_size: int
    """Width of one token's vector before the block vector is formed."""
    projection: bool = False
    """lookup only: map the concatenated vectors with a linear layer instead of using them as is."""
    num_layers: int = 0
    """Encoder layers (roberta kinds)."""
    num_attention_heads: int = 0
    """Encoder attention heads (roberta kinds)."""
    ffn_hidden_size: int = 0
    """Encoder feed-forward width (roberta kinds)."""
    num_cls_tokens: int = 0
    """CLS tokens in front of each block (roberta_cls)."""
    max_positions: int = 514
    """Rows of the learned position table (roberta kinds)."""
    dropout: float = 0.1
    """Dropout of the encoder in training (roberta kinds)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """A stack of transformer layers; the defaults are GPT-NeoX's."""

    num_layers: int
    """Transformer layers."""
    hidden_size: int
    """Width of the residual stream."""
    num_attention_heads: int
    """Attention heads."""
    num_query_groups: int | None = None
    """Key-value heads (grouped-query attention); none: as many as attention heads."""
    ffn_hidden_size: int | None = None
    """Width inside the feed-forward layer; none: 4 x hidden_size."""
    residual: Literal["parallel", "sequential"] = "parallel"
    """parallel: x + attn(ln1 x) + mlp(ln2 x), as GPT-NeoX; sequential: one after the other."""
    normalization: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation layers; layernorm has a bias, rmsnorm has none."""
    activation: Literal["gelu", "swiglu", "relu"] = "gelu"
    """Feed-forward activation; gelu is the exact (erf) one."""
    bias: bool = True
    """Whether the linear layers have biases."""
    rotary_fraction: float = 0.25
    """Part of each head that is rotated (GPT-NeoX rotary_pct); not used by cross_attention (T5)."""
    rotary_base: float = 10_000.0
    """Base of the rotary frequencies."""
    norm_epsilon: float = 1e-5
    """Epsilon of the normalisation layers."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        """Key-value heads, with the default filled in."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """Feed-forward width, with the default filled in."""
        return self.ffn_hidden_size or 4 * self.hidden_size


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDecoderConfig(DecoderConfig):
    """The decoder that writes the tokens of one block (paper 2.4, appendix F)."""

    strategy: Literal["prefix", "summation", "cross_attention"] = "prefix"
    """How the context embedding reaches the tokens. cross_attention is a T5 decoder."""
    prefix_length: int = 2
    """Prefix vectors per block (prefix only; the other strategies use block_length vectors)."""
    dropout: float = 0.0
    """Dropout in training (the T5 decoder of the reference has 0.1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A Block Transformer, or the vanilla GPT-NeoX that it is compared with."""

    architecture: Literal["block", "vanilla"] = "block"
    """block: embedder, block_decoder and token_decoder; vanilla: decoder only."""
    vocab_size: int
    """Rows of the token tables before padding for tensor parallelism."""
    block_length: int = 4
    """Tokens per block, L_B in the paper."""
    embedder: EmbedderConfig | None = None
    """Block model: turns a block of tokens into one vector."""
    block_decoder: DecoderConfig | None = None
    """Block model: attends over blocks."""
    token_decoder: TokenDecoderConfig | None = None
    """Block model: decodes the tokens of the next block."""
    decoder: DecoderConfig | None = None
    """Vanilla model: the whole stack."""
    init_std: float = 0.02
    """Standard deviation of the initial weights (SPEC of the reference: no depth scaling)."""

    @property
    def is_block(self) -> bool:
        """Whether this is a Block Transformer."""
        return self.architecture == "block"

    @property
    def target_shift(self) -> int:
        """How many tokens ahead a position predicts: a block, or one token (vanilla)."""
        return self.block_length if self.is_block else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetConfig:
    """One of the data folders that a run mixes."""

    path: str
    """Folder with token shards, as data.path."""
    weight: float
    """Its share of the tokens, relative to the other weights."""
    max_epochs: float | None = None
    """How often its samples are read at most; then the others share what it had. None: no limit."""
    drop: str | None = None
    """List of documents to leave out, as data.drop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which tokens are read and how they are packed into samples."""

    path: str | None = None
    """Folder with token shards: with the manifest.json of `python -m data_prep tokenize`, or with
    published .bin and .idx files, which need data.tokenizer. None: those of data.mixture."""
    mixture: dict[str, SubsetConfig] = field(default_factory=dict)
    """Several data folders by name, instead of data.path."""
    tokenizer: str | None = None
    """tokenizer.json that made the ids of folders without a manifest.json."""
    eos_token: str = "<|endoftext|>"
    """Token of data.tokenizer that ends a document."""
    drop: str | None = None
    """List of documents to leave out (`python -m data_prep deduplicate`)."""
    packing: Literal["documents", "rows"] = "documents"
    """documents: packed into samples here; rows: each document is one sample, packed before (the
    preshuffled sets of Pythia)."""
    order: Literal["shuffled", "stored"] = "shuffled"
    """shuffled: another permutation of the samples each epoch; stored: as they lie on disk."""
    index_dir: str | None = None
    """Where `python -m data_prep index` saves; none: `packed` in each data folder."""
    loader: Literal["memmap", "dali"] = "memmap"
    """What reads ahead: a thread, or NVIDIA DALI (gpu extra). Both give the same batches."""
    seq_length: int = 2048
    """Tokens per sample; a whole number of blocks."""
    random_left_padding: bool = True
    """Put 0 to block_length-1 pads in front of each document (reference: random_pad_first_block)"""
    pad_to_block_boundary: bool = True
    """Pad each document to whole blocks, so that no block holds two documents."""
    padding_seed: int = 42
    """Seed of the left padding lengths, drawn once for the whole corpus."""
    validation_fraction: float = 0.01
    """Part of the documents held out for validation."""
    seed: int = 42
    """Seed of the sample order and of the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    """How many sequences feed one optimizer step."""

    global_batch_size: int = 256
    """Sequences per optimizer step over all processes."""
    micro_batch_size: int = 1
    """Sequences per forward pass of one replica."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW (decoupled weight decay) and its learning-rate schedule."""

    lr: float = 3e-4
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """The cosine ends at this part of the peak."""
    warmup: Literal["linear", "log"] = "linear"
    """Shape of the warm-up."""
    warmup_steps: int = 3000
    """Steps of warm-up."""
    decay_steps: int | None = None
    """Step at which the cosine ends; none: train.steps."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.95
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decay of weights."""
    decay_biases_and_norms: bool = True
    """Decay one-dimensional parameters too, as the reference does."""
    clip_grad: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutConfig:
    """How the model and the batch are cut over processes; what is left is data parallel."""

    tp: int = 1
    """Tensor-parallel size."""
    sequence_parallel: bool = False
    """Cut activations outside of attention along the sequence (needs tp > 1)."""
    cp: int = 1
    """Context-parallel size: processes that share the blocks (vanilla: tokens) of a sequence."""
    pp: int = 1
    """Pipeline-parallel size: processes that follow each other."""
    vpp: int = 1
    """Virtual stages of each process (interleaved pipeline); pp x vpp stages in all."""
    pp_cut: str = "auto"
    """What each stage holds, e.g. Ebbbb|ttttL; auto balances by FLOPs."""
    distributed_optimizer: bool = True
    """Shard optimizer state over the dp x cp processes that hold the same weights."""
    overlap_grad_reduce: bool = False
    """Overlap gradient reduction with the backward pass."""
    overlap_param_gather: bool = False
    """Overlap the all-gather of updated weights with the next forward pass (needs both above)."""

    @property
    def replica_size(self) -> int:
        """Processes that hold the model once: tp x cp x pp."""
        return self.tp * self.cp * self.pp


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """What is computed again in the backward pass instead of being kept."""

    recompute: Literal["none", "selective", "full"] = "none"
    """selective: compute the activation inside each feed-forward layer again, which costs no
    product; full: keep only the input of each layer, and compute the layer again."""
    token_slices: int = 1
    """Run the token decoder on this many parts of the blocks, one after the other; only the
    inputs are kept, and memory shrinks with the number of parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelConfig:
    """Which implementation computes what."""

    layers: Literal["auto", "torch", "transformer_engine"] = "auto"
    """Norms, linear layers and attention; auto: Transformer Engine in bf16 on a GPU that has it."""
    fp8: Literal["none", "current", "delayed", "block"] = "none"
    """Products of the decoders' layers in FP8 (Hopper or newer, Transformer Engine), by how
    tensors are scaled: by their own maximum (current), by that of past micro-batches (delayed),
    or each block of 128 values by its own (block). All else stays in bf16."""
    token_attention: Literal["auto", "torch", "triton"] = "auto"
    """Attention of the token decoder; auto: our kernel on a GPU, where it fits."""
    deterministic: bool = True
    """Sum in a fixed order everywhere, so that a resumed run is the undisturbed one bit for bit;
    attention over long sequences is faster without."""
    cuda_graphs: bool = False
    """Launch each training step as one CUDA graph: faster where a step is bound by the host, as
    with small models and micro-batches."""
    head_chunk_tokens: int | None = None
    """Rows of logits computed at a time in the loss; none: all at once, kept for the backward
    pass. All but the last of several chunks are computed twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long to train, in what precision."""

    steps: int
    """Optimizer steps of the whole run."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """fp32, or bf16 with fp32 main weights and gradients."""
    seed: int = 1234
    """Seed of the initial weights and of dropout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Loss on the validation split."""

    interval_steps: int = 1000
    """Steps between evaluations; there is always one at the end."""
    max_sequences: int | None = 512
    """Sequences per evaluation; none: all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    interval_steps: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep_last: int = 2
    """How many of the newest are kept."""
    keep_every_steps: int | None = None
    """Checkpoints at multiples of this are kept for ever."""
    async_save: bool = True
    """Write in the background while training goes on."""
    initialize_from: str | None = None
    """Folder of weights (tools/import_checkpoint) to start from instead of random ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultConfig:
    """When processes that have died or hang are noticed, and the run stops."""

    dead_rank_seconds: int = 30
    """A process that is not heard of for this long is dead (a killed one is noticed at once)."""
    hung_rank_seconds: int = 30
    """All hang if none makes progress for this long, or for 3 times as long as the step,
    evaluation or wait for data takes in the median."""
    slow_phase_seconds: int = 1800
    """The same for what nobody can know the length of: the start, the first step and the first
    evaluation, checkpoints."""
    spike_factor: float = 2.0
    """A loss above this many times the median of the last 64 is a spike, and its batch is left
    out; 0: only a loss that is not finite is."""
    max_skipped_batches: int = 10
    """Batches of the last 1000 steps that may be left out before the run stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MlflowConfig:
    """Where metrics are tracked besides metrics.jsonl."""

    tracking_uri: str | None = None
    """Any MLflow URI; none: sqlite:///<runs_dir>/mlflow.db."""
    experiment: str = "bt-megatron"
    """Name of the MLflow experiment."""
    parent: str | None = None
    """Name of the MLflow run that groups this one with others, as those of a sweep."""
    system_metrics: bool = True
    """Also log the use of CPU, memory, network and GPUs by the machine of rank 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """What is reported, and how often."""

    interval_steps: int = 10
    """Steps between console lines and metrics records."""
    mlflow: MlflowConfig | None = field(default_factory=MlflowConfig)
    """Tracking; null turns it off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One training run."""

    name: str
    """Name of the run; its folder is <runs_dir>/<name>."""
    runs_dir: str = "runs"
    """Parent of the run folders."""
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    train: TrainConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def run_dir(self) -> str:
        """Folder of this run."""
        return f"{self.runs_dir}/{self.name}"
