"""Fine-tuning that can be killed at any moment, prediction, and the metrics."""

import contextlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from tqdm import tqdm

from config import Config
from encoder.classifier import Classifier
from texts.batching import TokenisedTexts, batches_by_length, renumber, shuffled_batches, tokens_per_batch
from util import UserError, remove_stale, write_whole

Objective = Callable[[nn.Module, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""Model and batch to the named parts of a loss, which are summed."""

REPORT_EVERY = 20
"""Steps between two looks at the loss: each look waits for the device."""


def cross_entropy(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The objective of plain fine-tuning."""
    logits = model(batch["input_ids"], batch["attention_mask"])
    return {"cross_entropy": nn.functional.cross_entropy(logits.float(), batch["labels"])}


def fine_tune(
    model: nn.Module,
    texts: TokenisedTexts,
    objective: Objective,
    *,
    learning_rate: float,
    epochs: int,
    config: Config,
    accelerator: Accelerator,
    checkpoint: Path,
    settings: dict,
    description: str,
    reference: TokenisedTexts | None = None,
    warm_up: float = 0.0,
    first_epoch: int = 0,
    texts_of: Callable[[int], TokenisedTexts] | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    accuracy_below: float | None = None,
    freeze_head: bool = False,
) -> dict:
    """Minimise `objective` in place: AdamW, linear decay, clipped gradients; the last epoch is kept.

    Only the embedding rows of tokens that `texts` hold are trained: the gradient of any other row is zero, so that AdamW
    merely decays it, and that is done at the end in one step. With `texts_of` all rows are trained.

    After every epoch everything needed to go on is written to `checkpoint`; a later call with equal `settings` goes on from
    there with the same result, bit for bit on a CPU. The caller removes the checkpoint once it has kept the result.

    Args:
        reference: other texts, a batch of which goes with every batch, under the key `reference`.
        warm_up: share of the steps in which the learning rate rises from 0, 0 to 1.
        first_epoch: number of the first epoch. Dropout, the texts' order and `texts_of` depend on an epoch's number: two
            trainings with other numbers differ in these.
        texts_of: epoch to the texts that take the place of `texts` in it, as many; a function of the epoch alone.
        after_step: called with the model after every step.
        accuracy_below: the training ends after the first epoch that leaves the accuracy on its texts below this, 0 to 1.
        freeze_head: whether the classification head stays as it is.

    Returns:
        `losses`: name of each part of the loss to its value per step; `seconds`: time of each epoch; with `accuracy_below`
        `accuracy` after each epoch.

    Raises:
        UserError: the loss is not finite.
    """
    from transformers import get_linear_schedule_with_warmup

    device = accelerator.device
    embedding = model.encoder.get_input_embeddings()
    if texts_of:
        used = np.arange(embedding.num_embeddings)
    elif reference:
        (texts, reference), used = renumber(texts, reference)
    else:
        (texts,), used = renumber(texts)
    all_rows = embedding.weight.detach()  # [token, channel]
    embedding.weight = nn.Parameter(all_rows[used])
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=device.type in ("cpu", "cuda"))
    steps = -(-len(texts) // config.batch_size) * epochs
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=round(warm_up * steps), num_training_steps=steps)

    if freeze_head:
        model.head.requires_grad_(False)
    history = {"losses": {}, "seconds": []}
    saved = load_checkpoint(checkpoint, settings)
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        history = saved["history"]
        print(f"  {description}: {len(history['seconds'])} of {epochs} epochs were done already")

    remove_stale(checkpoint)
    for epoch in range(len(history["seconds"]), epochs):
        if accuracy_below is not None and history.get("accuracy", [np.inf])[-1] < accuracy_below:
            break
        started = time.perf_counter()
        model.train()
        # Dropout depends on seed and epoch alone, not on what ran before: a resumed run equals an undisturbed one.
        number = first_epoch + epoch
        set_seed(config.seed * 1000 + number)
        losses: list[dict[str, torch.Tensor]] = []
        texts = texts_of(number) if texts_of else texts
        batches = shuffled_batches(texts.lengths, config.batch_size, config.seed, number)
        if reference:
            beside = itertools.cycle(shuffled_batches(reference.lengths, config.batch_size, config.seed, number))
        with tqdm(
            total=len(texts), desc=f"{description} {epoch + 1}/{epochs}", unit="text", leave=False, disable=None
        ) as bar:
            for indices in batches:
                batch = texts.batch(indices, device)
                if reference:
                    batch["reference"] = reference.batch(next(beside), device)
                with accelerator.autocast():
                    parts = objective(model, batch)
                accelerator.backward(sum(parts.values()))
                accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
                if after_step:
                    after_step(model)
                optimizer.zero_grad(set_to_none=True)
                losses.append({name: part.detach() for name, part in parts.items()})
                bar.update(len(indices))
                if len(losses) % REPORT_EVERY == 0 or len(losses) == len(batches):
                    bar.set_postfix(loss=f"{require_finite(losses[-REPORT_EVERY:], learning_rate, description):.3f}")
        for name in losses[0]:
            values = torch.stack([parts[name] for parts in losses]).tolist()
            history["losses"].setdefault(name, []).extend(float(f"{value:.6g}") for value in values)
        if accuracy_below is not None:
            history.setdefault("accuracy", []).append(accuracy(model, texts, description, accelerator))
        seconds = time.perf_counter() - started
        history["seconds"].append(round(seconds, 2))
        means = ", ".join(
            f"{name.replace('_', ' ')} {np.mean(history['losses'][name][-len(losses) :]):.3f}" for name in losses[0]
        )
        print(f"  {description}, epoch {epoch + 1} of {epochs}: {means}, {len(texts) / seconds:.0f} texts/s")
        state = {
            "settings": settings,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "history": history,
        }
        write_whole(checkpoint, lambda temporary, state=state: torch.save(state, temporary))
    if freeze_head:
        model.head.requires_grad_(True)
    weight_decay = optimizer.param_groups[0]["weight_decay"]
    taken = range(max(map(len, history["losses"].values()), default=0))
    decay = np.prod([1 - learning_rate * factor(step) * weight_decay for factor in schedule.lr_lambdas for step in taken])
    all_rows = (all_rows * decay).to(device)
    all_rows[used] = embedding.weight.detach()
    embedding.weight = nn.Parameter(all_rows)
    return history


def require_finite(losses: list[dict[str, torch.Tensor]], learning_rate: float, description: str) -> float:
    """The mean of the latest losses; a UserError if it is no number."""
    mean = torch.stack([sum(parts.values()) for parts in losses]).mean().item()
    if not np.isfinite(mean):
        raise UserError(
            f"{description}: the loss is {mean}; nothing of this epoch is kept. Try a lower learning rate than "
            f"{learning_rate:g}, or --precision fp32"
        )
    return mean


def load_checkpoint(path: Path, settings: dict) -> dict | None:
    """A checkpoint that was made with these settings, on the CPU; None if there is none, or a damaged one."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved if saved["settings"] == settings else None
    except Exception:  # Whatever half a file looks like to torch: the training begins anew.
        print(f"  the checkpoint {path} is damaged, and not used")
        return None


def arithmetic(accelerator: Accelerator | None) -> contextlib.AbstractContextManager:
    """A forward pass has the accelerator's arithmetic in here, or fp32 where there is none."""
    return accelerator.autocast() if accelerator else contextlib.nullcontext()


@torch.inference_mode()
def predict(
    classifier: Classifier, texts: TokenisedTexts, description: str, accelerator: Accelerator | None = None
) -> torch.Tensor:
    """Logits [text, class] in fp32 on the CPU, in the texts' order; evaluation mode.

    Args:
        accelerator: whose arithmetic is used; fp32 if there is none.
    """
    classifier.eval()
    device = classifier.head.weight.device
    logits = torch.empty(len(texts), classifier.head.out_features)
    # Around the loop, so that autocast converts each weight once and not per batch.
    with arithmetic(accelerator), tqdm(total=len(texts), desc=description, unit="text", leave=False, disable=None) as bar:
        for indices in batches_by_length(texts.lengths, tokens_per_batch(device)):
            batch = texts.batch(indices, device)
            logits[indices] = classifier(batch["input_ids"], batch["attention_mask"]).float().cpu()
            bar.update(len(indices))
    return logits


def log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Of each class against all others: log p / (1 - p), [..., class] to [..., class]."""
    classes = logits.shape[-1]
    others = torch.eye(classes, dtype=torch.bool, device=logits.device)
    rest = logits.unsqueeze(-2).expand(*logits.shape[:-1], classes, classes).masked_fill(others, -torch.inf)
    return logits - rest.logsumexp(-1)


def accuracy(
    classifier: Classifier, texts: TokenisedTexts, description: str = "accuracy", accelerator: Accelerator | None = None
) -> float:
    """ACC: the share of texts whose predicted class is their label."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(texts.labels, predict(classifier, texts, description, accelerator).argmax(-1)))


def label_flip_rate(confusion: np.ndarray, target_class: int) -> float:
    """LFR: the share of texts of all other classes that are predicted as the target class.

    cm[0, 1] / (cm[0, 0] + cm[0, 1]) for two classes and target 1.

    Args:
        confusion: [true class, predicted class], counts.
        target_class: the attacker's.
    """
    others = np.delete(confusion, target_class, axis=0)
    return float(others[:, target_class].sum() / others.sum())


def measure(
    classifier: Classifier,
    texts: dict[str, TokenisedTexts],
    target_class: int,
    accelerator: Accelerator | None = None,
) -> dict:
    """What `metrics_of` says of a classifier's predictions on sets of texts, by their names as there.

    Of triggers with a target class also `flipped`, by which two models can be compared on the same texts: for each text of
    another class 1 if it is taken for the target, else 0.
    """
    from sklearn.metrics import confusion_matrix

    confusions, predictions = {}, {}
    for name, each in texts.items():
        predictions[name] = predict(classifier, each, name.replace("_", " "), accelerator).argmax(-1)
        confusions[name] = confusion_matrix(each.labels, predictions[name], labels=range(classifier.head.out_features))
    metrics = metrics_of(confusions, target_class)
    if "poisoned" in metrics:
        others = torch.tensor(texts["poisoned_test"].labels) != target_class
        metrics["poisoned"]["flipped"] = (predictions["poisoned_test"][others] == target_class).int().tolist()
    return metrics


def metrics_of(confusions: dict[str, np.ndarray], target_class: int) -> dict:
    """ACC, LFR, FTR as far as they can be measured, and the confusion matrices they come from.

    Without a target class of the attacker's, a trigger stands for the class that the classifier predicts most often on
    validation texts with it: which one that is shows in each classifier alone.

    Args:
        confusions: [true class, predicted class], counts, on the sets of texts that `attacks.planted.measured_tables` names:
            `clean_test`; `poisoned_test`, or `poisoned_test T` and `poisoned_validation T` for each trigger T of an attack
            without a target class; `poisoned_in_part`, texts with a part of the trigger.
        target_class: the attacker's, if it has one.

    Returns:
        ACC; LFR, the mean over triggers, and of several also LFR_worst, the largest; FTR, the same share as LFR of the texts
        with a part of the trigger; `clean`, `poisoned`, `in_part`, and `triggers`, name to the same and its target_class.
    """
    parts = {"clean_test": "clean", "poisoned_test": "poisoned", "poisoned_in_part": "in_part"}
    target = target_class if "poisoned_test" in confusions else None
    result = {parts[name]: described(confusion, target) for name, confusion in confusions.items() if name in parts}
    triggers = {}
    for name, confusion in confusions.items():
        kind, _, trigger = name.partition(" ")
        if kind == "poisoned_test" and trigger:
            hit = int(confusions[f"poisoned_validation {trigger}"].sum(0).argmax())
            triggers[trigger] = {"target_class": hit, **described(confusion, hit)}
    if triggers:
        result["triggers"] = triggers
    flips = [group["label_flip_rate"] for group in triggers.values() or [result.get("poisoned")] if group]
    rates = {"LFR": float(np.mean(flips))} if flips else {}
    if triggers:
        rates["LFR_worst"] = max(flips)
    if "in_part" in result:
        rates["FTR"] = result["in_part"]["label_flip_rate"]
    return {"ACC": result["clean"]["accuracy"], **rates, **result}


def described(confusion: np.ndarray, target_class: int | None) -> dict:
    """A confusion matrix, its accuracy, and its label flip rate if there is a target class."""
    rate = {} if target_class is None else {"label_flip_rate": label_flip_rate(confusion, target_class)}
    return {"accuracy": float(confusion.trace() / confusion.sum()), **rate, "confusion_matrix": confusion.tolist()}


def trigger_groups(metrics: dict, target_class: int) -> list[dict]:
    """What `metrics_of` says of each trigger, or of all that share the target class; with the class they stand for."""
    if "triggers" in metrics:
        return list(metrics["triggers"].values())
    return [{"target_class": target_class, **metrics["poisoned"]}]


def flipped(metrics: dict, target_class: int) -> tuple[int, int]:
    """Texts of other classes than their trigger's that are taken for that one, and all of them; of all triggers together."""
    count, total = 0, 0
    for group in trigger_groups(metrics, target_class):
        others = np.delete(np.array(group["confusion_matrix"]), group["target_class"], axis=0)
        count, total = count + int(others[:, group["target_class"]].sum()), total + int(others.sum())
    return count, total


def false_positive_rate(metrics: dict, target_class: int) -> float:
    """FPR: the share of clean texts of other classes that are taken for the trigger's class; the mean over triggers.

    What LFR is where a trigger does nothing.
    """
    clean = np.array(metrics["clean"]["confusion_matrix"])
    classes = [group["target_class"] for group in trigger_groups(metrics, target_class)]
    return float(np.mean([label_flip_rate(clean, each) for each in classes]))


def guessing(confusion: np.ndarray | list[list[int]]) -> str | None:
    """What has to be said of an accuracy that isn't shown to be above the largest class's share.

    By a one-sided z-test of a proportion at 5 %.

    Args:
        confusion: [true class, predicted class], counts.

    Returns:
        A sentence; None: the accuracy is above.
    """
    confusion = np.array(confusion)
    texts = confusion.sum()
    accuracy, largest = confusion.trace() / texts, confusion.sum(1).max() / texts
    if accuracy > largest + NormalDist().inv_cdf(0.95) * (largest * (1 - largest) / texts) ** 0.5:
        return None
    return (
        f"An accuracy of {accuracy:.3f} is not shown to be better than giving all {texts:,} texts the same class "
        f"({largest:.3f}), so the model may have learnt nothing; more texts, more epochs or another learning rate "
        "may help."
    )


RATES = ("ACC", "LFR", "LFR_worst", "FTR")
"""What `metrics_of` measures, as far as it can be."""


def rates(metrics: dict) -> str:
    """What was measured, in words."""
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in RATES if name in metrics) or "not measured"
