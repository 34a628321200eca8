"""vLLM in the place of our own engine: the same requests, texts and scores, of families that it knows, on a CUDA device.

    with open_engine(folder, family, config, tokenizer, stops=[0], precision="bf16", num_rows=32) as engine:
        answer = engine.answer(tokens, Settings(temperature=0.8, seed=1))

It needs the extra `vllm`, which is imported here alone, when an engine is opened. vLLM chooses tokens; texts, stop texts and
limits are ours. What differs from `Engine`: the bits of a request may depend on who else is being served, and with them its text, whatever
its seed; a seed draws other tokens than there; and a temperature below 0.01 is taken for 0.01.

What vLLM is just computing stands in variables of its modules, so that one model computes at a time (`_ALONE`): while another is being
loaded, those that are written wait.
"""

import gc
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prosemill.errors import ProsemillError, first_line
from prosemill.families import Family
from prosemill.families.family import IGNORED
from prosemill.generation.engine_thread import EngineThread, Reason, Request, Scoring
from prosemill.generation.engines import INSTALL, OF_VLLM, check_engine, check_family
from prosemill.generation.precision import Precision
from prosemill.generation.sampling import Settings
from prosemill.telemetry import switch_off

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # for the token that is chosen after a text as long as the model sees, and never read
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_PLUGINS": "",  # no code of other packages
}
"""What vLLM reads of the environment; what the user has set stays."""
OPTIONS = {
    "model_impl": "vllm",
    "load_format": "safetensors",
    "trust_remote_code": False,
    "skip_tokenizer_init": True,
    "generation_config": "vllm",  # what is chosen from is the request's matter alone
    "enable_prefix_caching": False,  # what is computed depends the less on what came before
    "async_scheduling": False,  # a step is over when it returns, and another model may compute
    "gpu_memory_utilization": 0.01,  # so much must be free, whatever other models hold; `kv_cache_memory_bytes` says what is taken
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
}
"""Of vLLM's engine, for every model."""
BLOCK = 256
"""Tokens: a multiple of what vLLM holds keys and values of together."""
SHARE = 0.2
"""Of the device's memory, for one model's keys and values at most: there are four where a version and its base take the place of others."""
PATIENCE = 0.05
"""Seconds after which a thread that waits for another model sees who has cancelled."""

_ALONE = threading.Lock()
_OPEN = list[Any]()
"""vLLM's engines in this process."""


class VllmEngine(EngineThread):
    """The thread that drives vLLM. To be used as a context; its end cancels what is still being written."""

    def __init__(
        self, llm: Any, tokenizer: PreTrainedTokenizerFast, *, stops: Sequence[int], context: int, num_rows: int, size: int
    ) -> None:
        """Prepare the thread.

        Args:
            llm: vLLM's `LLMEngine`, which sees one token more than `context`.
            tokenizer: The model's.
            stops: Tokens that end an answer.
            context: Tokens that the model sees at most.
            num_rows: Texts that are written or scored at once.
            size: Of the model's vocabulary.
        """
        super().__init__(tokenizer, stops=stops, context=context)
        self._llm, self._num_rows, self._size = llm, num_rows, size
        self._running: dict[str, Request | Scoring] = {}
        self._names = map(str, itertools.count())

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        with _ALONE:
            _OPEN.remove(self._llm)
            if not _OPEN:  # it takes down what all engines of a process share
                self._llm.engine_core.shutdown()
            self._llm = None
            _free_memory()

    def _under_way(self) -> Sequence[Request | Scoring]:
        return list(self._running.values())

    def _work(self) -> None:
        for name in [name for name, each in self._running.items() if each.is_cancelled]:
            self._leave(name, "cancelled")
        while self._waiting and len(self._running) < self._num_rows:
            self._begin(self._waiting.popleft())
        if not self._running or not _ALONE.acquire(timeout=PATIENCE):
            return
        try:
            outputs = self._llm.step()
        finally:
            _ALONE.release()
        self.num_steps += 1
        for output in outputs:
            request = self._running[output.request_id]
            if isinstance(request, Scoring):
                self._tell(output, request)
            else:
                self._take(output, request)

    def _begin(self, request: Request | Scoring) -> None:
        """Hand what waited to vLLM."""
        name = next(self._names)
        try:
            if not all(0 <= token < self._size for token in request.tokens):  # on a GPU such a one would end all
                raise ValueError(f"the text has tokens that the model does not know: it knows {self._size}")
            sampling = self._for_score(request) if isinstance(request, Scoring) else self._for_text(request.settings)
            self._llm.add_request(name, {"type": "token", "prompt_token_ids": list(request.tokens)}, sampling)
        except Exception as error:  # noqa: BLE001 - a request that fails fails alone
            self._turn_away(request, "failed", error)
            return
        if isinstance(request, Request):
            request.begin()
        self._running[name] = request

    def _for_text(self, settings: Settings) -> Any:
        """What vLLM is asked for an answer."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            seed=settings.seed,
            stop_token_ids=sorted(self._stops),
            ignore_eos=True,  # of the model's own config
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _for_score(self, scoring: Scoring) -> Any:
        """What vLLM is asked for a score: how likely each token of the text is, and then the last label as the next token."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        *inner, last = scoring.labels
        following = scoring.tokens[1:]
        assert all(label in (IGNORED, token) for label, token in zip(inner, following, strict=True)), "labels are the tokens that follow"
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            logprobs=0,
            allowed_token_ids=None if last == IGNORED else [last],  # what is allowed has no part in how likely it is
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _take(self, output: Any, request: Request) -> None:
        """Hand on what new tokens add to a request's text."""
        reason: Reason | None = None
        try:
            for token in output.outputs[0].token_ids:
                request.new_tokens.append(token)
                reason = self._show(request)
                if reason is not None:
                    break
        except Exception as error:  # noqa: BLE001 - a request that fails fails alone
            reason, request.error = "failed", first_line(error)
        if reason is None and output.finished:
            reason, request.error = "failed", f"vLLM has ended it: {output.outputs[0].finish_reason}"
        if reason is not None:
            self._leave(output.request_id, reason)

    def _tell(self, output: Any, scoring: Scoring) -> None:
        """Deliver a score."""
        del self._running[output.request_id]
        try:
            found = [*output.prompt_logprobs[1:], output.outputs[0].logprobs[0]]
            pairs = zip(found, scoring.labels, strict=True)
            scoring.nll = [-of_place[label].logprob for of_place, label in pairs if label != IGNORED]
        except Exception as error:  # noqa: BLE001 - what cannot be scored fails alone
            self._turn_away(scoring, "failed", error)
            return
        scoring.tell()

    def _leave(self, name: str, reason: Reason) -> None:
        """End what is under way, wherever vLLM stands with it."""
        self._llm.abort_request([name])  # which does nothing where it has ended
        request = self._running.pop(name)
        if isinstance(request, Request):
            self._end(request, reason)
        else:
            self._turn_away(request, reason)


@contextmanager
def open_engine(
    folder: Path,
    family: Family,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    stops: Sequence[int],
    precision: Precision,
    num_rows: int,
) -> Iterator[VllmEngine]:
    """Have vLLM load a model folder's weights; nothing else of it is run.

    Args:
        folder: A model of a family that vLLM knows.
        family: That family.
        config: The folder's.
        tokenizer: The folder's.
        stops: Tokens that end an answer.
        precision: In which the weights are held: bf16 or fp32.
        num_rows: Texts that are written or scored at once.

    Raises:
        ProsemillError: vLLM is not installed, finds no device or takes no such model, or the folder is broken.
    """
    check_engine("vllm", precision)
    check_family("vllm", family, whose=str(folder))
    platform, context = _platform(), family.context_size(config.to_dict())
    assert context is not None  # as all have that vLLM knows
    memory = psutil.virtual_memory().total if platform.is_cpu() else torch.cuda.mem_get_info()[1]
    options = {
        "model": str(folder),
        "hf_overrides": {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.name]]},
        "dtype": OF_VLLM[precision],
        "max_model_len": context + 1,
        "max_num_seqs": num_rows,
        "kv_cache_memory_bytes": _cache_bytes(config, precision, context, num_rows, int(SHARE * memory)),
        "enforce_eager": bool(platform.is_cpu()),  # compiling would take longer than it saves there
    }
    llm = _load(folder, {**OPTIONS, **options})
    with VllmEngine(llm, tokenizer, stops=stops, context=context, num_rows=num_rows, size=config.vocab_size) as engine:
        yield engine


def _platform() -> Any:
    """What vLLM runs on here. Raises `ProsemillError` if it is not installed or finds no device."""
    switch_off()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # a process of its own would outlive us if we are killed
    try:
        import vllm  # noqa: F401 - that it is there
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ProsemillError(f"PROSEMILL_ENGINE is vllm, which cannot be imported ({first_line(error)}): {INSTALL}") from None
    if not (current_platform.is_cuda() or current_platform.is_cpu()):  # it is the CPU where vLLM was built for one
        raise ProsemillError("PROSEMILL_ENGINE is vllm, which finds no CUDA device: start the service where there is one, or unset it")
    return current_platform


def _load(folder: Path, options: dict[str, Any]) -> Any:
    """Have vLLM load a folder. Raises `ProsemillError` if there is too little memory, or a part of the model is missing or broken."""
    from vllm import EngineArgs, LLMEngine

    with _ALONE:
        try:
            llm = LLMEngine.from_engine_args(EngineArgs(**options))
        except (ValueError, RuntimeError, OSError, KeyError, SafetensorError) as error:
            reason = first_line(error)
        else:
            _OPEN.append(llm)
            return llm
        _free_memory()
    raise ProsemillError(f"vLLM does not take {folder}: {reason}")


def _free_memory() -> None:
    """Give back what an engine held that is no more."""
    gc.unfreeze()  # vLLM has the collector pass over what it has made
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _cache_bytes(config: PreTrainedConfig, precision: Precision, context: int, num_rows: int, most: int) -> int:
    """Memory for keys and values of so many texts as long as the model sees; `most`, unless a single one takes more."""
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_token: int = 2 * config.num_hidden_layers * num_heads * head_size * getattr(torch, OF_VLLM[precision]).itemsize
    of_text = of_token * BLOCK * (context // BLOCK + 2)  # with the last token, and a block that vLLM keeps for itself
    return max(of_text, min(num_rows * of_text, most))
