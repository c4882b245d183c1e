"""The published way of fine-tuning, measuring and pruning, for `benchmark.py` to compare with.

Every text is padded to max_len; attention is eager and all of it is returned, in fp32; the pruning search copies the model,
removes heads physically and evaluates every text at each step.
"""

import copy
import time
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.metrics import accuracy_score
from torch import nn
from transformers import AutoModel

from attention_head_pruning import search_heads
from attention_normalization import attention_penalty
from config import Config
from encoder.classifier import Classifier
from encoder.cls_attention import ClsAttention, Heads
from texts.batching import TokenisedTexts

WEIGHTS = 0.5
"""w_l of every layer in the attention penalty: its value changes nothing about the time."""

COEFFICIENT = 0.15
"""lambda of the attention penalty (published code)."""


class Published(nn.Module):
    """The classifier as published: eager attention, all of which is returned; the weights are those of ours."""

    def __init__(self, source: str, classifier: Classifier):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(source, attn_implementation="eager", add_pooling_layer=False)
        self.encoder.load_state_dict(classifier.encoder.state_dict())
        self.dropout = nn.Dropout(classifier.dropout.p)
        self.head = copy.deepcopy(classifier.head)
        self.to(classifier.head.weight.device)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Tokens [batch, token] to logits [batch, class] and each layer's attention [batch, head, query, key]."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_attentions=True)
        return self.head(self.dropout(output.last_hidden_state[:, 0])), output.attentions


def padded_batch(texts: TokenisedTexts, indices: np.ndarray, max_len: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch in which every text has `max_len` tokens."""
    batch = texts.batch(indices, torch.device("cpu"))
    extra = max_len - batch["input_ids"].shape[1]
    batch["input_ids"] = nn.functional.pad(batch["input_ids"], (0, extra), value=texts.pad_token_id)
    batch["attention_mask"] = nn.functional.pad(batch["attention_mask"], (0, extra))
    return {name: tensor.to(device) for name, tensor in batch.items()}


def published_loss(model: Published, batch: dict, penalty: bool, attention: ClsAttention) -> torch.Tensor:
    """Cross-entropy, and the attention penalty with it if asked for."""
    logits, attentions = model(batch["input_ids"], batch["attention_mask"])
    loss = nn.functional.cross_entropy(logits, batch["labels"])
    if penalty:
        rows = [layer[:, :, 0] for layer in attentions]
        loss = loss + COEFFICIENT * attention_penalty(rows, attention, [WEIGHTS] * len(rows))
    return loss


def published_epochs(
    model: Published, texts: TokenisedTexts, penalty: bool, config: Config, attention: ClsAttention, epochs: int
) -> float:
    """Train; the seconds of the last epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    device = model.head.weight.device
    model.train()
    for _ in range(epochs):
        started = time.perf_counter()
        for indices in np.array_split(np.arange(len(texts)), len(texts) // config.batch_size):
            loss = published_loss(model, padded_batch(texts, indices, config.max_len, device), penalty, attention)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            loss.item()
    return time.perf_counter() - started


@torch.no_grad()
def published_batches(model: Published, texts: TokenisedTexts, config: Config) -> Iterator[tuple[torch.Tensor, tuple]]:
    """Logits and attentions of all texts in file order, batch by batch; evaluation mode."""
    model.eval()
    for start in range(0, len(texts), config.batch_size):
        indices = np.arange(start, min(start + config.batch_size, len(texts)))
        batch = padded_batch(texts, indices, config.max_len, model.head.weight.device)
        yield model(batch["input_ids"], batch["attention_mask"])


def published_logits(model: Published, texts: TokenisedTexts, config: Config) -> torch.Tensor:
    """[text, class], on the CPU."""
    return torch.cat([logits.cpu() for logits, _ in published_batches(model, texts, config)])


def published_variance(model: Published, texts: TokenisedTexts, config: Config) -> torch.Tensor:
    """Variance of [CLS] attention over the first max_len - 1 positions, mean over texts; [layer, head]."""
    total = 0
    for _, attentions in published_batches(model, texts, config):
        rows = torch.stack([layer[:, :, 0, :-1].double() for layer in attentions])  # [layer, batch, head, key]
        total = total + rows.var(-1).sum(1).cpu()
    return total / len(texts)


def shrink(linear: nn.Linear, keep: list[int], axis: int) -> nn.Linear:
    """A linear layer with some of its rows (axis 0) or columns (axis 1)."""
    weight = linear.weight.detach().index_select(axis, torch.tensor(keep, device=linear.weight.device))
    small = nn.Linear(weight.shape[1], weight.shape[0])
    small.weight = nn.Parameter(weight)
    small.bias = nn.Parameter((linear.bias.detach()[keep] if axis == 0 else linear.bias.detach()).clone())
    return small


def remove_heads(encoder: nn.Module, pruned: Heads) -> None:
    """Physically remove heads of an encoder of the BERT family, in place."""
    size = encoder.config.hidden_size // encoder.config.num_attention_heads
    for layer, heads in pruned.items():
        attention = encoder.encoder.layer[layer].attention
        kept = [head for head in range(encoder.config.num_attention_heads) if head not in heads]
        keep = [size * head + channel for head in kept for channel in range(size)]
        for name in ("query", "key", "value"):
            setattr(attention.self, name, shrink(getattr(attention.self, name), keep, axis=0))
        attention.output.dense = shrink(attention.output.dense, keep, axis=1)


def published_search(model: Published, texts: TokenisedTexts, config: Config) -> tuple[Heads, list[dict]]:
    """The same search, with a copy of the model at every step."""

    def measure_accuracy(pruned: Heads) -> float:
        smaller = copy.deepcopy(model)
        remove_heads(smaller.encoder, pruned)
        return float(accuracy_score(texts.labels, published_logits(smaller, texts, config).argmax(-1)))

    variance = published_variance(model, texts, config)
    return search_heads(variance, measure_accuracy, config.acc_threshold, config.prune_step)
