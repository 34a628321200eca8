"""Fine-tuning: blocks and a base model in, the best model by validation loss out.

    train_model(section, blocks=BLOCKS, base=BASE_MODEL, output=TRAINED_MODEL, metrics=METRICS / "train.json", reports=REPORTS)

The arithmetic of the loss is in `loss`, the Trainer in `trainer`, what a kill leaves in `checkpoints`, what is written down while it runs
in `record`, how a model gets its adapters and loses them again in `adapters`, how several processes start and end together in `processes`,
and how they share out a batch in `parts`.
"""

import json
import resource
import warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.distributed import is_initialized
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from prosemill.digests import sha256_of_file, sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.families import family_of
from prosemill.locks import alone
from prosemill.metrics import write_metrics
from prosemill.params import Train, as_plain
from prosemill.precision import Arithmetic, choose_arithmetic, choose_device
from prosemill.pretrained import load_tokenizer, telling_a_full_disk
from prosemill.shards import MANIFEST
from prosemill.tokens.blocks import Blocks
from prosemill.tracking import open_run, run_fingerprint
from prosemill.training.adapters import add_adapters, count_parameters, export, load_base
from prosemill.training.checkpoints import Checkpoints
from prosemill.training.muon import MuonAndAdamW
from prosemill.training.processes import gather, is_leader, num_processes, run
from prosemill.training.record import Recorder, Sampler, StopEarly, write_curves, write_samples
from prosemill.training.throughput import measure_matmul_rate, training_operations_per_token
from prosemill.training.trainer import BlockCollator, BlockDataset, EvaluateAtTheEnd, TokenWeightedTrainer
from prosemill.workspace import CHECKPOINTS

LOGS_PER_EVALUATION = 20


def train_model(section: Train, *, blocks: Path, base: Path, output: Path, metrics: Path, reports: Path) -> None:
    """Fine-tune `base` on `blocks` and write the best checkpoint by validation loss, its metrics and its curves.

    A call that was cut goes on from its last checkpoint when it is made again, in the same tracked run, and ends as if never cut.

    Args:
        section: The train section of params.yaml.
        blocks: The group stage's folder.
        base: The base model's folder.
        output: Where the merged model goes, with its adapter in `adapter/` and `run.json`.
        metrics: JSON file of the run's metrics.
        reports: Folder for the loss curves (CSV and PNG) and the samples.

    Raises:
        ProsemillError: an input is missing or does not fit, another process trains the same, or the loss stops being a number.
        KeyboardInterrupt: the process was sent SIGTERM while it trained; a checkpoint is written.
    """
    run(section.num_processes, _train, section, blocks, base, output, metrics, reports)


def _train(section: Train, blocks: Path, base: Path, output: Path, metrics: Path, reports: Path) -> None:
    """One process's share of it. The leader alone locks, tracks, shows and writes."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # transformers 5.23 warns of its own renaming each time a PEFT model is built.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    fingerprint = fingerprint_of(section, blocks, base)
    train, validation = Blocks.open(blocks, "train"), Blocks.open(blocks, "validation")
    checkpoints = Checkpoints(CHECKPOINTS / fingerprint)
    with ExitStack() as stack:
        recorder = _begin(stack, section, fingerprint, blocks, base) if is_leader() else None
        trainer = build_trainer(section, train, validation, base, checkpoints, [recorder] if recorder else [])
        with telling_a_full_disk(CHECKPOINTS), recorder or nullcontext():
            trainer.go_on()
        matmul_rate, peak_memory = _measure_machine(section, trainer.args.device)
        if recorder is None:
            return
        values = _measurements(trainer, recorder, section, matmul_rate, peak_memory)
        recorder.run.log_metrics({key: value for key, value in values.items() if isinstance(value, int | float)})
        write_curves(recorder, reports)
        write_samples(recorder, reports)
        recorder.run.log_file(reports / "loss_curve.png", "plots")
        identity = {"fingerprint": fingerprint, "name": base_name(base), "best_step": recorder.best_step}
        trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        with telling_a_full_disk(output):
            export(trained, base, output, identity)
        write_metrics(metrics, values)
        checkpoints.clear()


def _begin(stack: ExitStack, section: Train, fingerprint: str, blocks: Path, base: Path) -> Recorder:
    """Hold the run's lock and open its tracks, until `stack` is closed."""
    end_of_text_id = Blocks.open(blocks, "train").end_of_text_id
    sampler = Sampler(family_of(base), load_tokenizer(base), end_of_text_id, section.sample_prompts, section.sample_tokens)
    stack.enter_context(alone(CHECKPOINTS / f"{fingerprint}.lock", f"training of {fingerprint}"))
    tracked = stack.enter_context(open_run(fingerprint, name=base_name(base), wandb=section.wandb))
    tracked.log_params({f"train.{key}": value for key, value in as_plain(section).items()})
    tracked.log_dataset("blocks", sha256_of_file(blocks / MANIFEST), source=str(blocks))
    return Recorder(section, tracked, sampler)


def fingerprint_of(section: Train, blocks: Path, base: Path) -> str:
    """The fingerprint of training with these params on these blocks from this model."""
    params = {key: value for key, value in as_plain(section).items() if key not in ("wandb", "num_processes")}
    base_files = [base / name for name in ("config.json", "tokenizer.json", *sorted(file.name for file in base.glob("*.safetensors")))]
    base_digest = sha256_of_value([[file.name, sha256_of_file(file)] for file in base_files])
    return run_fingerprint(params, sha256_of_file(blocks / MANIFEST), base_digest)


def build_trainer(
    section: Train, train: Blocks, validation: Blocks, base: Path, checkpoints: Checkpoints, callbacks: list[TrainerCallback]
) -> TokenWeightedTrainer:
    """The Trainer of a run, ready to train: model with adapters, blocks, schedule, callbacks."""
    device = choose_device()
    arithmetic = choose_arithmetic(section.precision, device)
    set_seed(section.seed)
    family = family_of(base)
    model = add_adapters(load_base(section, base, device), section.lora, family)
    # A cache would switch off the reading of document borders from positions.
    model.config.use_cache = False
    stop = section.documents_stop_attention
    optimizer = _muon(section, model) if section.optimizer == "muon" else None
    patience = section.early_stopping_patience
    trainer = TokenWeightedTrainer(
        model=model,
        args=training_arguments(section, arithmetic, device),
        train_dataset=BlockDataset(train),
        eval_dataset=BlockDataset(validation, section.max_validation_blocks),
        data_collator=BlockCollator(family, model.config, train.end_of_text_id, documents_stop_attention=stop),
        callbacks=[EvaluateAtTheEnd(), *callbacks, *([StopEarly(patience)] if patience else [])],
        optimizers=(optimizer, None),  # without one Trainer makes its AdamW
        tokens_per_byte=(validation.num_tokens - validation.num_documents) / validation.num_text_bytes,
        end_of_text_id=train.end_of_text_id,
        checkpoints=checkpoints,
    )
    trainer.remove_callback(PrinterCallback)  # the recorder speaks for the run
    return trainer


def _muon(section: Train, model: PreTrainedModel) -> MuonAndAdamW:
    return MuonAndAdamW(
        model,
        learning_rate=section.learning_rate,
        adamw_learning_rate=section.adamw_learning_rate or section.learning_rate,
        weight_decay=section.weight_decay,
    )


def training_arguments(section: Train, arithmetic: Arithmetic, device: torch.device) -> TrainingArguments:
    """The train section in Trainer's own terms: of what this process does.

    Raises:
        ProsemillError: there are several devices for a process; Trainer would give each of them a batch.
    """
    arguments = TrainingArguments(
        output_dir=str(CHECKPOINTS),  # nothing is written there: `Checkpoints` knows better places
        per_device_train_batch_size=section.batch_size // section.gradient_accumulation,
        per_device_eval_batch_size=section.batch_size // section.gradient_accumulation,
        gradient_accumulation_steps=section.gradient_accumulation // num_processes(),
        num_train_epochs=section.num_epochs or 1.0,
        max_steps=section.max_steps or -1,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.schedule,
        warmup_steps=section.warmup_ratio,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        bf16=arithmetic == "bf16",
        fp16=arithmetic == "fp16",
        use_cpu=device.type == "cpu",
        activation_checkpointing=section.gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=section.evaluation_interval,
        save_strategy="steps",
        save_steps=section.evaluation_interval,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(1, section.evaluation_interval // LOGS_PER_EVALUATION),
        # A filtered NaN looks like progress.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        seed=section.seed,
        data_seed=section.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        average_tokens_across_devices=False,  # the whole batch's tokens are counted already
    )
    if arguments.n_gpu > 1:
        raise ProsemillError(
            f"a process trains on one device, and here are {arguments.n_gpu}: set CUDA_VISIBLE_DEVICES=0, or train.num_processes for more"
        )
    several = DistributedType.MULTI_GPU if device.type == "cuda" else DistributedType.MULTI_CPU
    assert arguments.distributed_state is not None
    assert arguments.distributed_state.distributed_type == (several if is_initialized() else DistributedType.NO)
    assert arguments.world_size == num_processes()
    return arguments


def base_name(base: Path) -> str:
    """What the base model's SOURCE.json calls it, or else its family's name."""
    path = base / "SOURCE.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["name"]) if path.is_file() else family_of(base).name


def _measure_machine(section: Train, device: torch.device) -> tuple[float, int]:
    """Rate of matrix products of all processes at once, in operations per second, and the sum of their peak memories, in bytes."""
    rate = measure_matmul_rate(choose_arithmetic(section.precision, device), device)
    rates, memories = gather(torch.tensor([rate, _peak_memory(device)], dtype=torch.float64)).T.tolist()
    return sum(rates), int(sum(memories))


def _measurements(
    trainer: TokenWeightedTrainer, recorder: Recorder, section: Train, matmul_rate: float, peak_memory: int
) -> dict[str, Any]:
    block_size = trainer.block_size
    num_tokens = trainer.num_blocks * block_size
    tokens_per_second = num_tokens / recorder.step_seconds
    model = trainer.model
    assert model is not None
    num_parameters, num_trained = count_parameters(model)
    operations = _operations_per_token(trainer, block_size)
    return {
        "arithmetic": choose_arithmetic(section.precision, trainer.args.device),
        "best_step": recorder.best_step,
        "best_validation_loss": recorder.best["validation_loss"],
        "best_validation_bits_per_byte": recorder.best["validation_bits_per_byte"],
        "base_validation_loss": recorder.validation[0]["validation_loss"],
        "base_validation_bits_per_byte": recorder.validation[0]["validation_bits_per_byte"],
        "device": trainer.args.device.type,
        "matmul_teraflops_per_second": matmul_rate / 1e12,
        "mfu": tokens_per_second * operations / matmul_rate,
        "num_parameters": num_parameters,
        "num_processes": num_processes(),
        "num_steps": trainer.state.global_step,
        "num_tokens": num_tokens,
        "num_trained_parameters": num_trained,
        "peak_memory_bytes": peak_memory,
        "tokens_per_second": tokens_per_second,
        "train_seconds": recorder.step_seconds,
    }


def _operations_per_token(trainer: TokenWeightedTrainer, block_size: int) -> float:
    """Of one block, as the model is trained."""
    model, data, collate = trainer.model, trainer.train_dataset, trainer.data_collator
    assert model is not None
    assert data is not None
    batch = collate([data[0]])
    inputs = {name: value.to(trainer.args.device) for name, value in batch.items() if name != "labels"}
    return training_operations_per_token(model, inputs, block_size)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
