"""What a careful user of transformers would write today, for `benchmark.py` to compare with.

transformers' Trainer, texts grouped by length and padded to the longest of a batch, SDPA, fused AdamW, bf16 where there is
bf16. The attention penalty needs attention weights, which SDPA doesn't give: eager attention, all of it returned, through
`compute_loss`. Heads are pruned by masks in front of the attention's output projection, and every step of the search
evaluates every text, longest first.
"""

import copy
import tempfile
import time
from functools import partial

import torch
from sklearn.metrics import accuracy_score
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModel, DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from attention_head_pruning import search_heads
from attention_normalization import attention_penalty
from config import Config
from encoder.classifier import Classifier
from encoder.cls_attention import ClsAttention, Heads
from experiments.published_way import COEFFICIENT, WEIGHTS
from texts.batching import TokenisedTexts

EVALUATED_AT_ONCE = 64
"""Texts of a batch in evaluation."""


class TrainerModel(nn.Module):
    """Encoder, dropout and a linear head on [CLS], as a Trainer takes it; the weights are those of ours."""

    def __init__(self, source: str, classifier: Classifier, attention: str) -> None:
        """
        Args:
            attention: "sdpa", or "eager", which returns the attention weights too.
        """
        super().__init__()
        self.encoder = AutoModel.from_pretrained(source, attn_implementation=attention, add_pooling_layer=False)
        self.encoder.load_state_dict(classifier.encoder.state_dict())
        self.dropout = nn.Dropout(classifier.dropout.p)
        self.head = copy.deepcopy(classifier.head)
        self.returns_attention = attention == "eager"

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """Tokens [batch, token] to `logits` [batch, class], `loss` if there are labels, and `attentions`, each layer's
        [batch, head, query, key], if they are returned."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_attentions=self.returns_attention)
        result = {"logits": self.head(self.dropout(output.last_hidden_state[:, 0]))}
        if labels is not None:
            result = {"loss": nn.functional.cross_entropy(result["logits"].float(), labels), **result}
        return {**result, "attentions": output.attentions} if self.returns_attention else result


class Rows(Dataset):
    """Tokenised texts as a Trainer reads them."""

    def __init__(self, texts: TokenisedTexts) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.texts.input_ids[index], "labels": self.texts.labels[index]}


class PureTrainer(Trainer):
    """A Trainer whose loss has the attention penalty."""

    def __init__(self, *args, attention: ClsAttention, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.attention = attention

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        rows = [layer[:, :, 0] for layer in outputs["attentions"]]
        loss = outputs["loss"] + COEFFICIENT * attention_penalty(rows, self.attention, [WEIGHTS] * len(rows))
        return (loss, outputs) if return_outputs else loss


class EpochTimes(TrainerCallback):
    """Seconds of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *args, **kwargs) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, *args, **kwargs) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def make_trainer(
    model: TrainerModel,
    texts: TokenisedTexts,
    tokeniser,
    config: Config,
    precision: str,
    folder: str,
    epochs: int,
    attention: ClsAttention | None = None,
) -> Trainer:
    """A Trainer on texts, with the attention penalty if the classifier's `attention` is given; 0 epochs: for evaluation."""
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=EVALUATED_AT_ONCE,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        # Evaluation would be grouped too, and its predictions come back in that order.
        train_sampling_strategy="group_by_length" if epochs else "random",
        bf16=precision == "bf16",
        use_cpu=next(model.parameters()).device.type == "cpu",
        seed=config.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    kind = partial(PureTrainer, attention=attention) if attention else Trainer
    trainer = kind(model=model, args=arguments, train_dataset=Rows(texts), data_collator=DataCollatorWithPadding(tokeniser))
    trainer.remove_callback(PrinterCallback)  # Prints a dictionary where there is no progress bar.
    return trainer


def trainer_epochs(
    model: TrainerModel,
    texts: TokenisedTexts,
    tokeniser,
    config: Config,
    precision: str,
    epochs: int,
    attention: ClsAttention | None = None,
) -> float:
    """Train; the seconds of the last epoch."""
    times = EpochTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(model, texts, tokeniser, config, precision, folder, epochs, attention)
        trainer.add_callback(times)
        trainer.train()
    return times.seconds[-1]


def trainer_logits(model: TrainerModel, texts: TokenisedTexts, tokeniser, config: Config, precision: str) -> torch.Tensor:
    """[text, class], in the texts' order."""
    order = sorted(range(len(texts)), key=lambda index: -len(texts.input_ids[index]))
    by_length = TokenisedTexts(
        [texts.input_ids[index] for index in order], [texts.labels[index] for index in order], texts.pad_token_id
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(model, by_length, tokeniser, config, precision, folder, 0)
        found = torch.from_numpy(trainer.predict(Rows(by_length)).predictions)
    logits = torch.empty_like(found)
    logits[order] = found
    return logits


def mask_heads(encoder: nn.Module, pruned: Heads) -> list[torch.utils.hooks.RemovableHandle]:
    """Zero what some heads of an encoder of the BERT family hand to the output projection; the hooks that do it."""
    size = encoder.config.hidden_size // encoder.config.num_attention_heads
    hooks = []
    for layer, heads in pruned.items():
        projection = encoder.encoder.layer[layer].attention.output.dense
        mask = torch.ones(encoder.config.num_attention_heads, device=projection.weight.device)
        mask[heads] = 0
        mask = mask.repeat_interleave(size)  # [channel]
        hooks.append(projection.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,)))
    return hooks


def trainer_search(
    model: TrainerModel, texts: TokenisedTexts, tokeniser, config: Config, precision: str, variance: torch.Tensor
) -> tuple[Heads, list[dict]]:
    """The search for heads, given their variance [layer, head]."""

    def measure_accuracy(pruned: Heads) -> float:
        hooks = mask_heads(model.encoder, pruned)
        try:
            predicted = trainer_logits(model, texts, tokeniser, config, precision).argmax(-1)
        finally:
            for hook in hooks:
                hook.remove()
        return float(accuracy_score(texts.labels, predicted))

    return search_heads(variance, measure_accuracy, config.acc_threshold, config.prune_step)
