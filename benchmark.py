"""How much faster than the published way, and than transformers' Trainer: side by side on the same texts, machine, threads.

    python benchmark.py                                          # the project's reviews
    python benchmark.py --clean_dataset sst2_glue sst2 --data_dir DATA_FOLDER

The published way pads every text to max_len, computes eager attention and returns all of it, in fp32, and copies the model,
removes heads and evaluates every validation text at each step of the pruning search. The Trainer's way is what a careful
user of transformers would write today: texts grouped by length, padded to the longest of a batch, SDPA, fused AdamW, bf16
where there is bf16, eager attention for the penalty alone, masks for pruned heads. Before anything is timed, all are held
against each other in fp32: loss, variances and pruned heads have to agree.
"""

# Before torch, which reads when it is loaded how its threads are to wait.
from util import UserError, choose_device, has_native_bf16, make_accelerator, run_script, save_json

# isort: split
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from attention_head_pruning import head_variance
from config import Config, preset_config
from encoder.classifier import Classifier, load_config, load_encoder, load_tokeniser, require_positions, resolve_plm
from encoder.cls_attention import Heads
from experiments.our_way import our_epochs, our_objective, our_search
from experiments.published_way import (
    Published,
    padded_batch,
    published_epochs,
    published_logits,
    published_loss,
    published_search,
    published_variance,
)
from experiments.trainer_way import TrainerModel, make_trainer, trainer_epochs, trainer_logits, trainer_search
from pipeline.environment import in_own_process, main_memory_peak, processor_name
from pipeline.training import accuracy, predict
from texts.batching import TokenisedTexts, batches_by_length, shuffled_batches, tokenise, tokens_per_batch
from texts.data_sets import class_names, defender_splits


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    clean_dataset: tuple[str, ...] = ("reviews",)
    """Data sets, as `run_all.py` takes them."""
    texts: int = 768
    """Texts of the train split that are trained on, and of the validation split that are evaluated, or all where there are
    fewer. Many, since texts of like length share a batch: among few there is more padding than in a real run."""
    published_texts: int = 128
    """How many of them the published way is trained on. It pads every text to max_len, so that all cost it the same."""
    repeats: int = 3
    """Of each measurement, the ways in turn; medians are reported."""
    plm: str = "minilm"
    """Encoder of the BERT family: `minilm`, a folder, or a hub id."""
    data_dir: str | None = os.environ.get("PURE_DATA_DIR")
    """Folder of the data sets. Default: the environment variable PURE_DATA_DIR."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N."""
    max_len: int = 128
    """Tokens that the published way pads to."""
    memory_len: int = 512
    """Tokens per text where peak memory is measured; 0: not measured."""
    output: str = "results/benchmark.json"
    """Where the numbers are written."""


# -------------------------------------------------------------------------------------------------------- measurements


def seconds(run: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(dtype: torch.dtype, device: torch.device, hidden: int, intermediate: int) -> float:
    """FLOP/s of the fastest of the encoder's kinds of matrix product, and of a large square one; medians of 20."""
    best = 0.0
    for rows, columns, depth in ((2048, intermediate, hidden), (2048, hidden, intermediate), (2048, 2048, 2048)):
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, depth), (columns, depth)))
        times = [seconds(lambda a=a, b=b: nn.functional.linear(a, b), device) for _ in range(23)][3:]
        best = max(best, 2 * rows * columns * depth / statistics.median(times))
    return best


def training_flops(classifier: Classifier, texts: TokenisedTexts, penalty: bool, config: Config) -> float:
    """Floating point operations per text of the matrix products of an epoch, forward and backward."""
    objective = our_objective(classifier.train(), penalty)

    def step(batch: dict[str, torch.Tensor]) -> None:
        sum(objective(classifier, batch).values()).backward()
        classifier.zero_grad(set_to_none=True)

    batches = shuffled_batches(texts.lengths, config.batch_size, config.seed, 0)
    return matmul_flops(step, texts, batches, classifier.head.weight.device)


def evaluation_flops(classifier: Classifier, texts: TokenisedTexts) -> float:
    """Floating point operations per text of the matrix products of an evaluation."""
    device = classifier.eval().head.weight.device

    @torch.inference_mode()
    def step(batch: dict[str, torch.Tensor]) -> None:
        classifier(batch["input_ids"], batch["attention_mask"])

    return matmul_flops(step, texts, batches_by_length(texts.lengths, tokens_per_batch(device)), device)


def matmul_flops(
    step: Callable[[dict[str, torch.Tensor]], None],
    texts: TokenisedTexts,
    batches: Iterable[np.ndarray],
    device: torch.device,
) -> float:
    """Floating point operations of matrix products per text; those on padding don't count."""
    flops, tokens = 0, 0
    for indices in batches:
        batch = texts.batch(indices, device)
        tokens += batch["input_ids"].numel()
        # Of attention's kernels the counter knows the plain one on every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            step(batch)
        flops += counter.get_total_flops()
    return flops * texts.lengths.mean() / tokens


def peak_memory(source: str, way: str, length: int, device_name: str) -> int:
    """Bytes that a training step on 32 texts of `length` tokens adds to what the model takes; in a process of its own."""
    config = preset_config("quick", max_len=length, device=device_name)
    device = choose_device(device_name)
    classifier = Classifier(load_encoder(source), 2, 0.1, 0).to(device)
    tokens = np.random.default_rng(0).integers(1, classifier.encoder.config.vocab_size, (32, length))
    texts = TokenisedTexts(tokens.tolist(), [0, 1] * 16, pad_token_id=0)
    model = Published(source, classifier)

    def used() -> int:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        return main_memory_peak()

    before = used()
    if way == "published":
        published_epochs(model, texts, True, config, classifier.attention, 1)
    else:
        our_epochs(classifier, texts, True, config, "fp32", 1)
    return used() - before


def memory_ratio(source: str, benchmark: Benchmark) -> dict[str, int]:
    found = {}
    for way in ("published", "ours"):
        found[way] = in_own_process(peak_memory, source, way, benchmark.memory_len, benchmark.device)
    return found


def require_agreement(published: Published, classifier: Classifier, texts: TokenisedTexts, config: Config) -> dict:
    """Hold the two ways against each other in fp32.

    Returns:
        The largest relative differences of the losses and of Var; the number of pruned heads, which are the same.

    Raises:
        UserError: they don't agree.
    """
    device = classifier.head.weight.device
    published.eval(), classifier.eval()
    differences = {}
    first = np.arange(config.batch_size)
    for name, penalty in (("cross-entropy", False), ("PURE loss", True)):
        with torch.no_grad():
            theirs = published_loss(
                published, padded_batch(texts, first, config.max_len, device), penalty, classifier.attention
            ).item()
            ours = sum(our_objective(classifier, penalty)(classifier, texts.batch(first, device)).values()).item()
        differences[name] = abs(ours - theirs) / abs(theirs)
    theirs = published_variance(published, texts, config)
    differences["Var"] = ((head_variance(classifier, texts, config.max_len) - theirs).abs() / theirs).max().item()
    require_small(differences, "published")
    theirs, ours = published_search(published, texts, config), our_search(classifier, texts, config, "fp32")
    require_same_heads(theirs[0], ours[0], "published")
    return {**differences, "heads pruned": sum(map(len, ours[0].values())), "steps": len(ours[1])}


def require_trainer_agrees(
    source: str, classifier: Classifier, texts: TokenisedTexts, tokeniser, config: Config
) -> dict[str, float]:
    """Hold the Trainer's way against ours in fp32; the largest relative differences of the losses and of the logits.

    Raises:
        UserError: they don't agree.
    """
    device = classifier.eval().head.weight.device
    batch, differences = texts.batch(np.arange(config.batch_size), device), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, penalty in (("cross-entropy", False), ("PURE loss", True)):
            model = TrainerModel(source, classifier, "eager" if penalty else "sdpa").to(device).eval()
            attention = classifier.attention if penalty else None
            trainer = make_trainer(model, texts, tokeniser, config, "fp32", folder, 1, attention)
            with torch.no_grad():
                theirs = trainer.compute_loss(model, dict(batch)).item()
                ours = sum(our_objective(classifier, penalty)(classifier, batch).values()).item()
            differences[name] = abs(ours - theirs) / abs(theirs)
    model = TrainerModel(source, classifier, "sdpa").to(device)
    theirs = trainer_logits(model, texts, tokeniser, config, "fp32")
    differences["logits"] = ((predict(classifier, texts, "logits") - theirs).abs().max() / theirs.abs().max()).item()
    require_small(differences, "Trainer's")
    variance = head_variance(classifier, texts, config.max_len)
    found = trainer_search(model, texts, tokeniser, config, "fp32", variance)[0]
    require_same_heads(found, our_search(classifier, texts, config, "fp32")[0], "Trainer's")
    return differences


def require_small(differences: dict[str, float], way: str) -> None:
    for name, difference in differences.items():
        limit = 1e-4 if name in ("Var", "logits") else 1e-5
        if not difference <= limit:
            raise UserError(
                f"the {way} way and ours disagree: {name} differs by {difference:.1e} relative, expected {limit:g} or less "
                "in fp32"
            )


def require_same_heads(theirs: Heads, ours: Heads, way: str) -> None:
    if theirs != ours:
        raise UserError(f"the {way} way and ours disagree: it prunes {theirs}, we {ours}; expected the same heads in fp32")


def run_dataset(name: str, source: str, benchmark: Benchmark) -> dict:
    """All measurements on one data set."""
    config = preset_config(
        "quick", clean_dataset=name, data_dir=benchmark.data_dir, device=benchmark.device, max_len=benchmark.max_len
    )
    device = choose_device(benchmark.device)
    tokeniser = load_tokeniser(source)
    train, validation = (tokenise(table, tokeniser, config.max_len) for table in defender_splits(config))
    given = {"--texts": benchmark.texts, "--published_texts": benchmark.published_texts}
    for what, number in {
        **given,
        f"train split of {name}": len(train),
        f"validation split of {name}": len(validation),
    }.items():
        if number < config.batch_size:
            raise UserError(f"{what}: {number} texts; expected {config.batch_size}, a batch, or more")
    classes = len(class_names(config))
    classifier = Classifier(load_encoder(source), classes, config.classifier_dropout, config.seed).to(device)
    # The search needs a classifier that has learnt something: an epoch on 1,280 texts.
    our_epochs(classifier, head_of(train, 1280), False, config, "auto", 1)
    train, validation = head_of(train, benchmark.texts), head_of(validation, benchmark.texts)
    few = head_of(train, benchmark.published_texts)
    reached = accuracy(classifier, validation)
    config = replace(config, acc_threshold=reached - 0.02)
    published = Published(source, classifier)
    agreement = require_agreement(published, classifier, validation, config)
    trainer_agreement = require_trainer_agrees(source, classifier, validation, tokeniser, config)
    peers = {kind: TrainerModel(source, classifier, kind).to(device) for kind in ("sdpa", "eager")}
    found_variance = head_variance(classifier, validation, config.max_len)

    precisions = ["fp32", "bf16"] if has_native_bf16(device) else ["fp32"]
    times: dict[tuple[str, str], list[float]] = {}  # Seconds per text; of the search, seconds.
    heads: dict[str, Heads] = {}

    def note(task: str, way: str, value: float) -> None:
        times.setdefault((task, way), []).append(value)

    for _ in tqdm(range(benchmark.repeats), desc=name, leave=False, disable=None):
        # Searched and evaluated first: training changes the two models in different ways.
        run = partial(published_logits, published, validation, config)
        note("evaluation", "published", seconds(run, device) / len(validation))
        note("pruning search", "published", seconds(lambda: published_search(published, validation, config), device))
        for precision in precisions:
            accelerator = make_accelerator(config.device, precision)
            run = partial(predict, classifier, validation, "evaluation", accelerator)
            note("evaluation", precision, seconds(run, device) / len(validation))

            def search(precision: str = precision) -> None:
                heads[precision] = our_search(classifier, validation, config, precision)[0]

            note("pruning search", precision, seconds(search, device))
            # Each time a copy: a model keeps the arithmetic that a Trainer first prepared it for.
            peer = copy.deepcopy(peers["sdpa"])
            run = partial(trainer_logits, peer, validation, tokeniser, config, precision)
            note("evaluation", f"Trainer, {precision}", seconds(run, device) / len(validation))
            run = partial(trainer_search, peer, validation, tokeniser, config, precision, found_variance)
            note("pruning search", f"Trainer, {precision}", seconds(run, device))
        for task, penalty in (("fine-tuning, CE", False), ("fine-tuning, PURE loss", True)):
            model, ours = copy.deepcopy(published), copy.deepcopy(classifier)
            note(task, "published", published_epochs(model, few, penalty, config, classifier.attention, 2) / len(few))
            for precision in precisions:
                note(task, precision, our_epochs(ours, train, penalty, config, precision, 2) / len(train))
                peer = copy.deepcopy(peers["eager" if penalty else "sdpa"])
                attention = classifier.attention if penalty else None
                took = trainer_epochs(peer, train, tokeniser, config, precision, 2, attention)
                note(task, f"Trainer, {precision}", took / len(train))

    hidden, intermediate = classifier.encoder.config.hidden_size, classifier.encoder.config.intermediate_size
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    peaks = {precision: matmul_peak(dtypes[precision], device, hidden, intermediate) for precision in precisions}
    tasks = {}
    for task in ("fine-tuning, CE", "fine-tuning, PURE loss", "evaluation", "pruning search"):
        ways = ("published", *(f"Trainer, {precision}" for precision in precisions), *precisions)
        median = {way: statistics.median(times[task, way]) for way in ways}
        ratios = {
            "ratio": {precision: median["published"] / median[precision] for precision in precisions},
            "ratio_to_trainer": {p: median[f"Trainer, {p}"] / median[p] for p in precisions},
        }
        if task == "pruning search":
            tasks[task] = {"seconds": median, **ratios}
            continue
        tasks[task] = {"texts_per_second": {way: 1 / value for way, value in median.items()}, **ratios}
        if task == "evaluation":
            flops = evaluation_flops(classifier, validation)
        else:
            flops = training_flops(copy.deepcopy(classifier), train, task == "fine-tuning, PURE loss", config)
        tasks[task]["share_of_peak"] = {p: flops / median[p] / peaks[p] for p in precisions}
    return {
        "texts": {"train": len(train), "validation": len(validation), "published_train": len(few)},
        "tokens_per_text": float(train.lengths.mean()),
        "validation_accuracy": reached,
        "agreement": agreement,
        "trainer_agreement": trainer_agreement,
        "same_heads": {precision: heads[precision] == heads["fp32"] for precision in precisions},
        "matmul_peak_gflops": {precision: peak / 1e9 for precision, peak in peaks.items()},
        "tasks": tasks,
    }


def head_of(texts: TokenisedTexts, size: int) -> TokenisedTexts:
    return replace(texts, input_ids=texts.input_ids[:size], labels=texts.labels[:size])


def heading(result: dict) -> str:
    return f"{result['machine']}, {result['threads']} threads, torch {torch.__version__}; medians of {result['repeats']}"


def dataset_markdown(name: str, data: dict) -> str:
    """The measurements on one data set as a table."""
    precisions = list(data["matmul_peak_gflops"])
    trainer = [f"Trainer, {precision}" for precision in precisions]
    lines = [
        f"{name}: {data['texts']['train']} texts to train on ({data['texts']['published_train']} in the published way), "
        f"{data['texts']['validation']} to evaluate, {data['tokens_per_text']:.1f} tokens on average; matmul peak "
        + ", ".join(f"{peak:.0f} GFLOP/s in {precision}" for precision, peak in data["matmul_peak_gflops"].items()),
        "",
        as_row(["task", "published way", *trainer, *precisions, *(f"share of peak, {p}" for p in precisions)]),
        as_row(["---"] * (2 + 3 * len(precisions))),
    ]
    for task, found in data["tasks"].items():
        if "seconds" in found:
            unit, numbers, form = "s", found["seconds"], ".2f"
        else:
            unit, numbers, form = "texts/s", found["texts_per_second"], ".0f"
        cells = [task, *(f"{numbers[way]:{form}} {unit}" for way in ("published", *trainer))]
        cells += [
            f"{numbers[p]:{form}} {unit}, {found['ratio'][p]:.1f}x and {found['ratio_to_trainer'][p]:.1f}x"
            for p in precisions
        ]
        cells += [f"{found['share_of_peak'][p]:.0%}" if "share_of_peak" in found else "" for p in precisions]
        lines.append(as_row(cells))
    agreement, peer = data["agreement"], data["trainer_agreement"]
    lines += [
        "",
        "Ratios: to the published way, and to the Trainer in the same arithmetic. Largest relative differences in fp32: "
        + ", ".join(f"{key} {agreement[key]:.1e}" for key in ("cross-entropy", "PURE loss", "Var"))
        + "; to the Trainer's way "
        + ", ".join(f"{key} {value:.1e}" for key, value in peer.items())
        + f". Pruned heads: the same {agreement['heads pruned']} in {agreement['steps']} steps"
        + (f"; in bf16 {'the same' if data['same_heads']['bf16'] else 'others'}." if "bf16" in precisions else "."),
    ]
    return "\n".join(lines)


def memory_markdown(result: dict) -> str:
    mib = {way: size / 2**20 for way, size in result["memory"].items()}
    share = f"{mib['ours'] / mib['published']:.2f} of it" if mib["published"] else "too little to measure"
    return (
        f"Memory that a training step on 32 texts of {result['memory_len']} tokens adds, fp32: published way "
        f"{mib['published']:,.0f} MiB, ours {mib['ours']:,.0f} MiB ({share})"
    )


def as_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    benchmark = tyro.cli(Benchmark, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
    source = resolve_plm(benchmark.plm)
    if not hasattr(getattr(load_encoder(source), "encoder", None), "layer"):
        raise UserError(f"{benchmark.plm} is not of the BERT family; expected minilm or such an encoder")
    if benchmark.repeats < 1:
        raise UserError(f"--repeats {benchmark.repeats} is out of range; expected 1 or more")
    for flag in ("max_len", "memory_len"):
        require_positions(load_config(source), getattr(benchmark, flag), f"--{flag}")
    device = choose_device(benchmark.device)
    if device.type == "cuda" and torch.cuda.device_count() > 1:  # All of which a Trainer takes.
        raise UserError(
            f"{torch.cuda.device_count()} cards are visible, and the Trainer would train on all of them; name one with the "
            "environment variable CUDA_VISIBLE_DEVICES"
        )
    result = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "repeats": benchmark.repeats,
        "memory_len": benchmark.memory_len,
        "memory": memory_ratio(source, benchmark) if benchmark.memory_len else None,
        "datasets": {},
    }
    print(heading(result))
    for name in benchmark.clean_dataset:
        result["datasets"][name] = run_dataset(name, source, benchmark)
        save_json(Path(benchmark.output), result)
        print("", dataset_markdown(name, result["datasets"][name]), sep="\n", flush=True)
    if result["memory"]:
        print("", memory_markdown(result), sep="\n")


if __name__ == "__main__":
    run_script(main)
