"""What runs inside a registered package: one model of any family, behind MLflow's `predict`.

    model = mlflow.pyfunc.load_model("models:/prosemill@champion")
    model.predict(pandas.DataFrame({"prompt": ["The history of"]}), params={"max_new_tokens": 20})["generated_text"]

A package holds the trained model's folder and the modules of `CODE`, and asks for the libraries of `REQUIREMENTS`: it needs no checkout of
this repository.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from transformers import GenerationConfig

from prosemill.families import family_of
from prosemill.precision import choose_device
from prosemill.pretrained import added_text, end_of_text_id, load_model, load_tokenizer, stop_tokens

if TYPE_CHECKING:
    import numpy as np

MODEL = "model"  # the artifact that is the trained model's folder

CODE = (
    "__init__.py",
    "end_of_text.py",
    "errors.py",
    "families",
    "generation",
    "orphans.py",
    "packaged",
    "precision.py",
    "pretrained.py",
    "telemetry.py",
)
"""Files and folders of `prosemill` that a package carries."""

REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "tokenizers", "torch", "transformers")
"""Libraries that a package needs, in the versions that it was made with."""

DEFAULTS: dict[str, int | float] = {"max_new_tokens": 100, "temperature": 0.8, "top_p": 0.9, "seed": 0}
"""Params of `predict`; a temperature of 0 is greedy."""


class PackagedModel(PythonModel):
    """Continues prompts, each the beginning of a document. A prompt's text depends on no other prompt of the call."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the package's model, in fp32, onto the first CUDA device or else the CPU."""
        self.open(Path(context.artifacts[MODEL]))

    def open(self, folder: Path) -> None:
        """Load the model of a folder."""
        self._family = family_of(folder)
        self._tokenizer = load_tokenizer(folder)
        self._end_of_text_id = end_of_text_id(self._tokenizer)
        model: Any = load_model(folder)
        self._model = model.to(choose_device())
        self._context = self._family.context_size(model.config.to_dict())
        # Nothing of the folder's own settings, but where an encoder's decoder starts.
        self._model.generation_config = GenerationConfig(decoder_start_token_id=getattr(self._model.config, "decoder_start_token_id", None))

    def predict(self, context: PythonModelContext | None, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The column `generated_text`, one row for each of the column `prompt`, without the prompt.

        Args:
            context: Not used.
            model_input: The prompts.
            params: Of `DEFAULTS`, what is to be otherwise.

        Raises:
            ValueError: a prompt and its new tokens are more than the model sees, or a param makes no sense.
        """
        settings = DEFAULTS | (params or {})
        return pd.DataFrame({"generated_text": [self._continue(prompt, **settings) for prompt in model_input["prompt"]]})

    def logits(self, texts: list[str]) -> "list[np.ndarray]":
        """What the model predicts for each text, read alone as far as it sees: [tokens that are predicted, vocabulary], fp32."""
        found = []
        for text in texts:
            tokens = self._tokenizer.encode(text, add_special_tokens=False)[: self._context]
            windows = [next(iter(self._family.windows(0, len(tokens), len(tokens), len(tokens))))]
            batch = self._family.frame([tokens], windows, self._model.config, self._end_of_text_id)
            inputs = {name: value.to(self._model.device) for name, value in batch.items() if name != "labels"}
            with torch.inference_mode():
                found.append(self._model(**inputs, use_cache=False).logits[0].float().cpu().numpy())
        return found

    def _continue(self, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int) -> str:
        if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1 or seed < 0:
            raise ValueError("max_new_tokens must be at least 1, temperature and seed at least 0, and top_p above 0 and at most 1")
        tokens = self._tokenizer.encode(prompt, add_special_tokens=False)
        batch = self._family.prompt([tokens], self._end_of_text_id)
        num_given = self._family.num_given(batch)
        if self._context is not None and num_given + max_new_tokens > self._context:
            raise ValueError(
                f"prompt and max_new_tokens are {num_given + max_new_tokens} tokens, and the model sees {self._context} at most"
            )
        stops = stop_tokens(self._tokenizer, self._end_of_text_id)
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {"do_sample": False}
        config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=stops[0], **sampling)
        inputs = {name: value.to(self._model.device) for name, value in batch.items()}
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output = self._model.generate(**inputs, generation_config=config)[0].tolist()
        return added_text(self._tokenizer, tokens, [token for token in output[num_given:] if token not in stops])
