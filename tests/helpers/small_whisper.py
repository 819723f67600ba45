"""A Whisper of 16 channels, random weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration


def small_whisper(encoder_layers: int = 3, decoder_layers: int = 3) -> nn.Module:
    """The same weights for the same numbers of layers; 8 mel bins, a window of 40 frames, 60 tokens."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=24,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    model: nn.Module = WhisperForConditionalGeneration(config)
    return model.eval()
