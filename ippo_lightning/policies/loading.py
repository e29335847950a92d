"""Load or build language models, tokenizers and adapters; every failure becomes an error of one line."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ippo_lightning.errors import UserError
from ippo_lightning.policies.adapters import check_target_modules, embedding_rows, fit_embedding
from ippo_lightning.policies.base_changes import noting_base_change, weight_versions
from ippo_lightning.policies.contexts import seeded
from ippo_lightning.policies.impossible_models import check_computes
from ippo_lightning.policies.packaged_models import local_model
from ippo_lightning.policies.quantized import is_quantized
from ippo_lightning.policies.reference import POLICY_ADAPTER
from ippo_lightning.policies.settings import LoraSettings
from ippo_lightning.policies.tokenizer_loading import check_vocabulary, one_line, require_model
from ippo_lightning.policies.tying import adapters_on_tied_weights, text_configs, untie
from ippo_lightning.storage.attention_choice import config_without_kernel
from ippo_lightning.storage.quantized_loading import (
    Quantization,
    pin_layers,
    quantization_config,
    quantization_device,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Names that transformers accepts for a configuration and converts to another field.
_LEGACY_CONFIG_NAMES = frozenset({"rope_theta", "rope_scaling", "model_type"})


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a language model comes from; every call of `load` returns a new model with equal weights.

    Args:
        pretrained: folder or Hub name, `package:NAME` for a model that a package brings, or None.
        config: model type and sizes for a new model, or None.
        dtype: "float32", "bfloat16" or "float16".
        quantization: quantise the weights while loading: "nf4", "fp4" or "int8"; None for no quantisation.
        double_quantization: quantise the scales of 4-bit weights too.
        compute_dtype: of products with 4-bit weights; None for `dtype`.
        attn_implementation: "eager", "sdpa", ...; None for the library's choice.
        trust_remote_code: run code that comes with the model.
        seed: start of the random numbers of a new model's weights.
        adapter_path: folder of a saved adapter that is added later; the embedding gets the number of rows that the
            adapter was trained with.

    Raises:
        UserError: not exactly one of `pretrained` and `config` is given, or they contradict the other settings.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    dtype: str = "float32"
    quantization: Quantization | None = None
    double_quantization: bool = True
    compute_dtype: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    adapter_path: str | None = None

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (self.config is None):
            given = "neither" if self.pretrained is None else "both"
            raise UserError(f"policy.pretrained, policy.config: {given} given; give exactly one")
        if self.dtype not in DTYPES:
            raise UserError(f"policy.dtype: {self.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        if self.compute_dtype is not None and self.compute_dtype not in DTYPES:
            raise UserError(f"policy.compute_dtype: {self.compute_dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        if self.quantization is not None and self.quantization not in get_args(Quantization):
            kinds = ", ".join(get_args(Quantization))
            raise UserError(f"policy.quantization: {self.quantization!r} is unknown; use one of {kinds}, or null")
        if self.quantization and self.config is not None:
            raise UserError(
                f"policy.quantization: {self.quantization} with policy.config; save the model once and give it as "
                "pretrained"
            )

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Return the model, checked against the tokenizer.

        Args:
            tokenizer: gives a new model its vocabulary size and special tokens.

        Raises:
            UserError: the model cannot be loaded or built, or its embedding is smaller than the vocabulary.
        """
        source = local_model(self.pretrained)
        model = self._from_config(tokenizer) if source is None else self._from_pretrained(source)
        pin_layers(model)
        if self.adapter_path is not None:
            check_adapter_folder(self.adapter_path)
            fit_embedding(model, self.adapter_path)
        check_vocabulary(tokenizer, embedding_rows(model))
        return model

    def _from_config(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        assert self.config is not None
        # Outside the `try`, so that its errors keep their own field.
        config = _new_config(self.config, tokenizer)
        try:
            with seeded(self.seed):
                model: PreTrainedModel = AutoModelForCausalLM.from_config(
                    config, trust_remote_code=self.trust_remote_code, **self._common()
                )
        except Exception as error:
            raise UserError(f"policy.config: {self.config} builds no causal model; {one_line(error)}") from error
        check_computes(model, self.config)
        return model

    def _from_pretrained(self, pretrained: str) -> PreTrainedModel:
        require_model(pretrained)
        settings = self._common()
        config = config_without_kernel(
            pretrained,
            chosen=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
            field="policy.pretrained",
            remedy="set policy.attn_implementation to NAME to allow it, or to sdpa or eager",
        )
        if config is not None:
            settings["config"] = config
        if self.quantization is not None:
            settings["quantization_config"] = quantization_config(
                self.quantization,
                double_quantization=self.double_quantization,
                compute_dtype=DTYPES[self.compute_dtype or self.dtype],
            )
            settings["device_map"] = quantization_device()
        try:
            with seeded(self.seed):  # a model without some of its weights draws them; the caller's numbers stay
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    pretrained, trust_remote_code=self.trust_remote_code, output_loading_info=True, **settings
                )
        except Exception as error:
            # a damaged folder fails in many ways, in transformers, in safetensors or in the model's own code
            raise UserError(f"policy.pretrained: cannot load {pretrained!r}; {one_line(error)}") from error
        model: PreTrainedModel = loaded[0]
        # transformers fills missing weights at random and only warns; training would start from noise
        missing = sorted(loaded[1]["missing_keys"])
        if missing:
            raise UserError(
                f"policy.pretrained: {pretrained!r} lacks {len(missing)} weights, for example {missing[0]}; "
                "give a saved causal language model"
            )
        return model

    def _common(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"dtype": DTYPES[self.dtype]}
        if self.attn_implementation is not None:
            settings["attn_implementation"] = self.attn_implementation
        return settings


def add_lora(model: PreTrainedModel, settings: LoraSettings, *, seed: int) -> PeftModel:
    """Add a new adapter to the model, or a saved one to continue from; the base is frozen.

    Args:
        model: the base, changed in place.
        settings: of the adapter.
        seed: start of the random numbers of a new adapter.

    Returns:
        The model with one trainable adapter, its weights in float32 also on a half-precision or 4-bit base.

    Raises:
        UserError: no module has the given names, or the saved adapter cannot be loaded.
    """
    if settings.adapter_path is not None:
        check_adapter_folder(settings.adapter_path)
        before = weight_versions(model)
        try:
            # PEFT draws an adapter at random before it reads the saved weights
            with seeded(seed), adapters_on_tied_weights():
                continued = PeftModel.from_pretrained(
                    model, settings.adapter_path, adapter_name=POLICY_ADAPTER, is_trainable=True
                )
            return noting_base_change(continued, before)
        except Exception as error:
            raise UserError(
                f"policy.lora.adapter_path: cannot load {settings.adapter_path!r}; {one_line(error)}"
            ) from error
    check_target_modules(model, settings.target_modules)
    # Adapters stay float32 on any base: in half precision, small updates would be rounded away.
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type=TaskType.CAUSAL_LM,
    )
    try:
        with seeded(seed), adapters_on_tied_weights():
            adapted = get_peft_model(model, config, adapter_name=POLICY_ADAPTER)
    except ValueError as error:
        raise UserError(
            f"policy.lora.target_modules: {settings.target_modules!r} does not fit the model; {one_line(error)}"
        ) from error
    assert isinstance(adapted, PeftModel)
    return adapted


def merge_adapter(model: PreTrainedModel, adapter_path: str) -> PreTrainedModel:
    """Return the model with a saved adapter added into its weights.

    Args:
        model: an unquantised base, changed in place.
        adapter_path: folder of the saved adapter.

    Raises:
        UserError: the folder contains no adapter.
    """
    check_adapter_folder(adapter_path)
    with seeded(0), adapters_on_tied_weights():  # PEFT draws an adapter at random before it reads the saved weights
        adapted = PeftModel.from_pretrained(model, adapter_path)
    untie(adapted, text_configs(transformers_model(adapted)))
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def check_adapter_folder(path: str) -> None:
    """Refuse a folder that contains no saved adapter.

    Args:
        path: the user's folder.

    Raises:
        UserError: there is no `adapter_config.json` in it.
    """
    if not (Path(path) / "adapter_config.json").is_file():
        raise UserError(f"policy.lora.adapter_path: no adapter_config.json in {path!r}; give the folder of the adapter")


def check_quantization(model: PreTrainedModel, lora: LoraSettings | None) -> None:
    """Refuse to train quantised weights themselves.

    Args:
        model: the loaded base; a checkpoint may have been saved quantised.
        lora: the adapter settings, if any.

    Raises:
        UserError: there are quantised weights and no adapter.
    """
    if lora is None and is_quantized(model):
        raise UserError("policy.pretrained: the saved weights are quantised, which cannot be trained; add lora")


def transformers_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the transformers model inside a PEFT model, with its adapters, or the model itself.

    Args:
        model: with or without adapters.
    """
    if not isinstance(model, PeftModel):
        return model
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


def _new_config(fields: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    fields = copy.deepcopy(fields)  # the user's own, which the next line changes
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise UserError("policy.config.model_type: none; name an architecture, for instance llama")
    try:
        # Built without the user's fields, to learn which names this architecture has.
        default = AutoConfig.for_model(model_type)
    except Exception as error:
        raise UserError(f"policy.config.model_type: {model_type!r} is unknown to transformers; try llama") from error
    _check_config_names(fields, default)
    # The user's fields come after these and win, for example for a larger vocabulary.
    special = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    try:
        return AutoConfig.for_model(model_type, **{**special, **fields})
    except Exception as error:
        raise UserError(f"policy.config: {fields} does not fit {model_type}; {one_line(error)}") from error


def _check_config_names(fields: dict[str, object], default: PreTrainedConfig) -> None:
    # transformers stores an unknown field without complaint, so a typing error would silently give the default size
    known = {*default.to_dict(), *default.attribute_map, *_LEGACY_CONFIG_NAMES}
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else "see the architecture's configuration for its fields"
            raise UserError(f"policy.config.{name}: {default.model_type} has no such field; {remedy}")
