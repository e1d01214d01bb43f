"""What the configs of tiny models share."""

from __future__ import annotations

WINDOW = 40  # shorter than the tokens that tests feed

# heads of 32 either way: four and two of them said by head_dim, or by a hidden size of 128 where a config has no such
# field. Key and value heads are two, so that an order of heads that is wrong shows.
SAID = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
DIVIDED = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
COMMON = {
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "beta_fast": 16.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
SLIDING_AND_FULL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
