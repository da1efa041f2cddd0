# SPDX-License-Identifier: Apache-2.0
"""Does an exported folder give the trainer's logits? Measured on every export."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bt_megatron.checkpoint.hf_config import BLOCK_TRANSFORMER
from bt_megatron.config.schema import ModelConfig
from bt_megatron.errors import ConversionError

TOLERANCE = 1e-4
"""Largest difference, as part of the largest logit, of two implementations with the same
weights in float32; what remains between them is the order of sums."""
SAMPLE_BLOCKS = 16
VANILLA_SAMPLE = 64
SAMPLE_SEED = 20240604


@dataclass(frozen=True, slots=True)
class Comparison:
    """The measured difference of two sets of logits."""

    difference: float
    """Largest absolute difference, the trainer's model having the weights as stored."""
    allowed: float
    """Largest difference that is accepted."""
    rounding: float
    """Largest absolute difference to the trainer's model with the weights before rounding."""
    agreement: float
    """Part of the predictions with the same best token as before rounding."""
    largest: float
    """Largest absolute logit of the trainer."""
    predictions: int
    """Tokens that were predicted."""

    def require(self) -> None:
        """Accept or refuse.

        Raises:
            ConversionError: the difference is larger than allowed, or not a number.
        """
        if not self.difference <= self.allowed:
            raise ConversionError(
                f"the exported model's logits differ from the trainer's by {self.difference:.3g}, "
                f"allowed are {self.allowed:.3g}. Nothing was written. Please report it with the "
                "model section."
            )


def sample_tokens(model: ModelConfig) -> Tensor:
    """Return the tokens [b, s] that both models read: random ids, the same on every call."""
    length = SAMPLE_BLOCKS * model.block_length if model.is_block else VANILLA_SAMPLE
    generator = torch.Generator().manual_seed(SAMPLE_SEED)
    return torch.randint(model.vocab_size, (2, length), generator=generator)


@torch.no_grad()
def exported_logits(folder: Path, tokens: Tensor, *, shift: int) -> Tensor:
    """Return the logits of an exported folder, loaded as any user would load it.

    Args:
        folder: the exported model.
        tokens: [b, s].
        shift: how many tokens ahead the model predicts at first.

    Returns:
        [b, s - shift, v] in float32, entry i predicts token i + shift.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, local_files_only=True
    )
    # As in training, whatever the folder's configuration puts in front of texts.
    options = {"left_padding": 0} if model.config.model_type == BLOCK_TRANSFORMER else {}
    return model.eval()(tokens, **options).logits[:, shift - 1 : -1].float()


def compare_logits(exported: Tensor, stored: Tensor, original: Tensor) -> Comparison:
    """Compare logits [b, i, v] in float32.

    Args:
        exported: of the exported model.
        stored: of the trainer's model with the weights as they are stored.
        original: of the trainer's model with the weights before rounding.
    """
    largest = stored.abs().max().item()
    return Comparison(
        difference=(exported - stored).abs().max().item(),
        allowed=TOLERANCE * max(1.0, largest),
        rounding=(exported - original).abs().max().item(),
        agreement=(exported.argmax(-1) == original.argmax(-1)).float().mean().item(),
        largest=largest,
        predictions=exported.shape[0] * exported.shape[1],
    )
