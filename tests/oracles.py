"""Tiny random torch models of every family: what the ports are compared with."""

from __future__ import annotations

import copy

import torch
import transformers
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama import modeling_llama

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,  # not hidden_size / heads
    # At the default of 0.02 a model is so tame that a wrong rotary base loops as rounding.
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 50.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
}
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "head_dim": 24,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.25},
}
# Case -> model type and the options in which it differs from SIZES.
CASES = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama-mqa-untied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "llama-mha": ("llama", {"num_key_value_heads": 4, "head_dim": 8}),
    "llama-biases": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    ),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen3-window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 3, "layer_types": WINDOWS},
    ),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": 4, "layer_types": WINDOWS, "query_pre_attn_scalar": 20},
    ),
    "gemma3-mqa-untied": (
        "gemma3_text",
        {
            "sliding_window": 3,
            "layer_types": WINDOWS,
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
        },
    ),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 24}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "head_dim": 6}),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN, "num_key_value_heads": 1}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 20}),
    "mistral-window": ("mistral", {"sliding_window": 4, "num_key_value_heads": 1}),
    "ministral": ("ministral", {"sliding_window": 3, "layer_types": WINDOWS}),
    "gemma3-linear": (
        "gemma3_text",
        {
            "sliding_window": 4,
            "layer_types": WINDOWS,
            "query_pre_attn_scalar": 20,
            "rope_parameters": GEMMA_ROPES,
            "head_dim": 20,
        },
    ),
    # Layers repeat with a period of two.
    "qwen3_5": (
        "qwen3_5_text",
        LINEAR | {"num_hidden_layers": 4, "layer_types": ["linear_attention", WINDOWS[1]] * 2},
    ),
    # They do not repeat: the whole stack is one period.
    "qwen3_5-tied": (
        "qwen3_5_text",
        LINEAR
        | {
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            "linear_conv_kernel_dim": 2,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
        },
    ),
    "ouro": ("ouro", {"total_ut_steps": 3, "rope_theta": 50.0, "num_hidden_layers": 2}),
}


# --- A looped decoder; transformers has none ------------------------------------------------------


class OuroConfig(transformers.LlamaConfig):
    model_type = "ouro"
    max_position_embeddings: int = 32768  # and so on: the defaults of the published class
    num_key_value_heads: int | None = 32
    total_ut_steps: int = 4


class OuroLayer(modeling_llama.LlamaDecoderLayer):
    """Norms also behind attention and feed-forward."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        norms = (modeling_llama.LlamaRMSNorm(config.hidden_size, config.rms_norm_eps),) * 2
        self.input_layernorm_2, self.post_attention_layernorm_2 = map(copy.deepcopy, norms)

    def forward(self, x, mask, rope):
        mixed, _ = self.self_attn(
            hidden_states=self.input_layernorm(x), attention_mask=mask, position_embeddings=rope
        )
        x = x + self.input_layernorm_2(mixed)
        out = self.mlp(self.post_attention_layernorm(x))
        return x + self.post_attention_layernorm_2(out)


class OuroForCausalLM(modeling_llama.LlamaForCausalLM):
    config_class = OuroConfig

    def __init__(self, config):
        super().__init__(config)
        layers = (OuroLayer(config, i) for i in range(config.num_hidden_layers))
        self.model.layers = torch.nn.ModuleList(layers)
        self.model.early_exit_gate = torch.nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self, input_ids=None, inputs_embeds=None, attention_mask=None, position_ids=None, **_
    ):
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(x.shape[1])[None]
        rope = self.model.rotary_emb(x, position_ids)
        mask = create_causal_mask(self.config, x, attention_mask, None, position_ids=position_ids)
        after_passes = []
        for _ in range(self.config.total_ut_steps):
            for layer in self.model.layers:
                x = layer(x, mask, rope)
            x = self.model.norm(x)
            after_passes.append(x)
        return CausalLMOutputWithPast(logits=self.lm_head(x), hidden_states=tuple(after_passes))


transformers.AutoConfig.register("ouro", OuroConfig)
transformers.AutoModelForCausalLM.register(OuroConfig, OuroForCausalLM)

# --- All families ---------------------------------------------------------------------------------


def build_torch_model(case: str, **changes) -> transformers.PreTrainedModel:
    """A random float32 torch model with norm weights that are not all alike."""
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    model_type, options = CASES[case]
    config = transformers.AutoConfig.for_model(model_type, **SIZES | options | changes)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False)
