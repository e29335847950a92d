"""Published sizes of language models, for estimates that load nothing: what each `config.json` on the Hub contains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder with gated feed-forward layers.

    Args:
        source: Hub id of the model whose `config.json` has these numbers.
        model_type: of transformers.
        layers: number of blocks.
        hidden: width between the blocks.
        intermediate: width inside a feed-forward layer.
        heads: of the queries.
        kv_heads: of keys and values.
        head_dim: width of a head.
        vocabulary: rows of the embedding.
        tied: whether the head of the language model is the embedding.
    """

    source: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def queries(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys of a token, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def has_fused_layers(self) -> bool:
        """Whether queries, keys and values are one layer, and so are the two inputs of a feed-forward layer."""
        return self.model_type == "phi3"

    @property
    def has_output_norms(self) -> bool:
        """Whether attention and feed-forward layers are also normalised behind, and norms compute in float32."""
        return self.model_type.startswith("gemma")

    @property
    def has_head_norms(self) -> bool:
        """Whether queries and keys are normalised head by head."""
        return self.model_type in ("qwen3", "gemma3_text")

    @property
    def has_attention_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return self.model_type == "qwen2"

    @property
    def stores_attention_matrix(self) -> bool:
        """Whether attention is computed without a fused kernel: none of PyTorch's has Gemma-2's cap on the logits."""
        return self.model_type == "gemma2"

    def linear_layers(self) -> list[tuple[int, int]]:
        """Return inputs and outputs of the linear layers of one block, in the order of the forward."""
        if self.has_fused_layers:
            first, second = [(self.hidden, self.queries + 2 * self.keys)], [(self.hidden, 2 * self.intermediate)]
        else:
            first = [(self.hidden, self.queries), (self.hidden, self.keys), (self.hidden, self.keys)]
            second = [(self.hidden, self.intermediate), (self.hidden, self.intermediate)]
        return [*first, (self.queries, self.hidden), *second, (self.intermediate, self.hidden)]

    def linear_parameters(self) -> int:
        """Return the weights of all linear layers but the head: those that an adapter or 4 bits are for."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_layers())

    def embedding_parameters(self) -> int:
        """Return the weights of embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def other_parameters(self) -> int:
        """Return the weights of norms, and biases."""
        block = self.hidden * (4 if self.has_output_norms else 2)
        block += 2 * self.head_dim if self.has_head_norms else 0
        block += self.queries + 2 * self.keys if self.has_attention_bias else 0
        return self.layers * block + self.hidden

    def parameters(self) -> int:
        """Return the number of all weights."""
        return self.linear_parameters() + self.embedding_parameters() + self.other_parameters()

    def adapter_parameters(self, rank: int) -> int:
        """Return the weights of a low-rank adapter on all linear layers but the head.

        Args:
            rank: `lora.r`.
        """
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in self.linear_layers())

    def config(self) -> dict[str, Any]:
        """Return the fields of a configuration of transformers with these sizes."""
        return {
            "model_type": self.model_type,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
        }


def _shape(source: str, model_type: str, *sizes: int, tied: bool) -> ModelShape:
    layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary = sizes
    return ModelShape(
        source=source,
        model_type=model_type,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        tied=tied,
    )


# layers, hidden, intermediate, heads, heads of keys and values, head dimension, vocabulary
SHAPES = {
    "smollm2-135m": _shape("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", 30, 576, 1536, 9, 3, 64, 49152, tied=True),
    "qwen3-0.6b": _shape("Qwen/Qwen3-0.6B", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, tied=True),
    "gemma-3-1b": _shape("google/gemma-3-1b-it", "gemma3_text", 26, 1152, 6912, 4, 1, 256, 262144, tied=True),
    "rho-1b": _shape("microsoft/rho-math-1b-v0.1", "llama", 22, 2048, 5632, 32, 4, 64, 32000, tied=False),
    "llama-3.2-1b": _shape("meta-llama/Llama-3.2-1B", "llama", 16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "qwen3-1.7b": _shape("Qwen/Qwen3-1.7B", "qwen3", 28, 2048, 6144, 16, 8, 128, 151936, tied=True),
    "gemma-2-2b": _shape("google/gemma-2-2b", "gemma2", 26, 2304, 9216, 8, 4, 256, 256000, tied=True),
    "qwen2.5-3b": _shape("Qwen/Qwen2.5-3B", "qwen2", 36, 2048, 11008, 16, 2, 128, 151936, tied=True),
    "llama-3.2-3b": _shape("meta-llama/Llama-3.2-3B", "llama", 28, 3072, 8192, 24, 8, 128, 128256, tied=True),
    "phi-3-mini": _shape("microsoft/Phi-3-mini-4k-instruct", "phi3", 32, 3072, 8192, 32, 32, 96, 32064, tied=False),
    "qwen3-4b": _shape("Qwen/Qwen3-4B", "qwen3", 36, 2560, 9728, 32, 8, 128, 151936, tied=True),
    "llama-3-8b": _shape("meta-llama/Meta-Llama-3-8B", "llama", 32, 4096, 14336, 32, 8, 128, 128256, tied=False),
}
"""Name, as in `experiments/models` where there is a file, to sizes; from the smallest to the largest."""
