"""How a model gets its LoRA adapters, and how the trained model leaves: adapter and merged weights, both usable with plain transformers."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prosemill.errors import ProsemillError
from prosemill.families import Family, family_of
from prosemill.params import Lora, Train
from prosemill.precision import DTYPES
from prosemill.pretrained import load_model, refuse_remote_code

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "SOURCE.json")
ADAPTER = "adapter"


def load_base(section: Train, base: Path, device: torch.device) -> PreTrainedModel:
    """The model to be trained: fp32 weights, or frozen ones in `section.base_precision`.

    Raises:
        ProsemillError: a file is missing, the family is not supported, or 4-bit weights are asked for without CUDA and bitsandbytes.
    """
    if section.base_precision != "nf4":
        return load_model(base, dtype=DTYPES[section.base_precision])
    if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        lack = "a CUDA device, and this machine has none" if device.type != "cuda" else "bitsandbytes: run `pip install bitsandbytes`"
        raise ProsemillError(f"`train.base_precision`: nf4 (QLoRA) needs {lack}; or set it to bf16 in params.yaml")
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    refuse_remote_code(base)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = family_of(base).load(base, quantization_config=four_bits, device_map={"": device}, use_safetensors=True)
    prepared: PreTrainedModel = prepare_model_for_kbit_training(model, use_gradient_checkpointing=section.gradient_checkpointing)
    return prepared


def add_adapters(model: PreTrainedModel, lora: Lora | None, family: Family) -> Any:
    """Freeze the model and put adapters beside its target layers; with `lora` None return it as it is, every weight trained.

    Raises:
        ProsemillError: a target names no linear layer of the model.
    """
    if lora is None:
        return model.train()
    from peft import LoraConfig, get_peft_model

    linear = {name.rpartition(".")[2]: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    targets = lora.targets or family.lora_targets
    for target in targets:
        if target not in linear:
            raise ProsemillError(f"`train.lora.targets`: the model has no linear layer {target!r}; choose from {', '.join(sorted(linear))}")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(linear[target], Conv1D) for target in targets),  # GPT-2's linear layers are transposed
        task_type=family.task,
    )
    return get_peft_model(model, config)


def count_parameters(model: Any) -> tuple[int, int]:
    """Parameters of the model without its adapters, and how many values were trained."""
    from peft import PeftModel

    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapters = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    counting: Any = model.get_base_model() if isinstance(model, PeftModel) else model  # it knows of weights that share a byte
    return counting.num_parameters() - adapters, trained


def export(model: Any, base: Path, output: Path, identity: dict[str, Any]) -> None:
    """Write the trained model under a temporary name and rename it, so that a half-written one is never trusted.

    Args:
        model: The trained model, with adapters or without.
        base: The base model's folder, whose tokenizer and licence go along.
        output: Folder of the merged model; `adapter/` in it holds the adapter where there is one.
        identity: Content of `run.json`: what leads from the weights back to their run.
    """
    from peft import PeftModel

    temporary = output.with_name(f".{output.name}.part")
    if temporary.exists():
        shutil.rmtree(temporary)
    if isinstance(model, PeftModel):
        config: Any = model.peft_config["default"]
        config.base_model_name_or_path = base.as_posix()
        config.target_modules = sorted(config.target_modules)  # a set, whose order would be another in each process
        model.save_pretrained(str(temporary / ADAPTER))
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):  # merge into the weights before they were rounded
            model = PeftModel.from_pretrained(load_model(base), str(temporary / ADAPTER))
        model = model.merge_and_unload()
    model.config.use_cache = True
    model.save_pretrained(temporary)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, temporary / name)
    (temporary / "run.json").write_text(json.dumps(identity, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    temporary.rename(output)
