"""How a model gets its LoRA adapters, and how the trained model leaves: adapter and merged weights, both usable with plain transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from prosemill.errors import ProsemillError
from prosemill.params import Lora

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "SOURCE.json")


def add_adapters(model: PreTrainedModel, lora: Lora | None) -> Any:
    """Freeze the model and put adapters beside its target layers; with `lora` None return it as it is, every weight trained.

    Raises:
        ProsemillError: a target names no linear layer of the model.
    """
    if lora is None:
        return model.train()
    from peft import LoraConfig, get_peft_model

    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets = ("q_proj", "v_proj") if lora.targets is None else lora.targets
    for target in targets:
        if target not in names:
            raise ProsemillError(f"`train.lora.targets`: the model has no linear layer {target!r}; choose from {', '.join(sorted(names))}")
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(targets), task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters of the model without its adapters, and how many values were trained."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapters = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    return sum(parameter.numel() for parameter in model.parameters()) - adapters, trained


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
        model.peft_config["default"].base_model_name_or_path = base.as_posix()
        model.save_pretrained(str(temporary / "adapter"))
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
