"""An attention function for transformers' `AttentionInterface` that shows [CLS] attention and gates heads.

The output comes from PyTorch's scaled dot product attention, so no [query, key] matrix is kept. Beside it, and only while
somebody records, the one row of that matrix that PURE looks at is computed: the attention of the first token, [CLS], to
all tokens. A head is pruned by a gate of 0 on its output where that enters the output projection, which equals removing it:
the columns of the projection that belong to it are multiplied by zeros.
"""

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from encoder.dropout import fast_dropout
from util import UserError

Heads = dict[int, list[int]]
"""Layer to head numbers."""

FAMILIES = "an encoder such as BERT, RoBERTa, XLM-RoBERTa, DistilBERT, ELECTRA or ModernBERT"

KEPT = 64
"""Longest text, in tokens, whose [query, key] matrices are kept for the backward pass: at most half of what the layer's
other activations take."""
PART = 2**22
"""Elements of a [text, head, query, key] tensor that is held at a time where texts are longer."""


class ClsAttention:
    """What the attention modules of one encoder share with the outside.

    Attributes:
        num_heads: heads of each layer.
        only_cls: whether the last layer is computed for the first token alone, the one that is read.
        pruned: layer to the numbers of its pruned heads.
        rows: [CLS] attention of each layer in the latest forward pass, [batch, head, key], fp32 and before dropout; None
            while nobody records.
        gates: [layer, batch, head], factors of the heads' outputs in the next forward pass; None for ones.
        unseen: layer to the tokens that [CLS] can't attend to there in the next forward pass, booleans [batch, key].
    """

    def __init__(self):
        self.num_heads: list[int] = []
        self.only_cls = False
        self.pruned: Heads = {}
        self.rows: list[torch.Tensor | None] | None = None
        self.gates: torch.Tensor | None = None
        self.unseen: dict[int, torch.Tensor] = {}
        self.projections: list[nn.Linear] = []

    def head_mask(self) -> torch.Tensor:
        """[layer, head] booleans, True for a head that is kept."""
        mask = torch.ones(len(self.num_heads), max(self.num_heads), dtype=torch.bool)
        for layer, heads in self.pruned.items():
            mask[layer, heads] = False
        return mask

    @contextlib.contextmanager
    def record(self) -> Iterator[list[torch.Tensor]]:
        """Within the block, every forward pass fills the list it yields with each layer's [CLS] rows."""
        self.rows = [None] * len(self.num_heads)
        try:
            yield self.rows
        finally:
            self.rows = None

    @contextlib.contextmanager
    def gate(self, gates: torch.Tensor) -> Iterator[None]:
        """Within the block, every head's output is multiplied by its gate, [layer, batch, head]."""
        self.gates = gates
        try:
            yield
        finally:
            self.gates = None

    @contextlib.contextmanager
    def hide(self, unseen: dict[int, torch.Tensor]) -> Iterator[None]:
        """Within the block, [CLS] can't attend to some tokens: layer to booleans [batch, key]."""
        self.unseen = unseen
        try:
            yield
        finally:
            self.unseen = {}


def cls_attention_forward(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """Attention function; query, key, value are [batch, head, token, channel], the output [batch, token, head, channel]."""
    shared: ClsAttention = module.cls_attention
    if not hasattr(module, "cls_attention_layer"):  # Only in the pass that `install_cls_attention` makes.
        module.cls_attention_layer = len(shared.num_heads)
        shared.num_heads.append(query.shape[1])
    layer = module.cls_attention_layer
    if layer in shared.unseen:
        attention_mask = without_tokens(attention_mask, shared.unseen[layer], query)
    queries, mask = query, attention_mask
    only_cls = shared.only_cls and layer == len(shared.num_heads) - 1
    if only_cls:
        queries, mask = query[:, :, :1], None if mask is None else mask[:, :, :1]
    if dropout > 0 and query.device.type != "cuda":
        # Off CUDA no fused kernel knows dropout, and all [query, key] matrices would be kept for the backward pass. Where
        # they are large they are computed again instead, with the same dropout, for a few texts at a time.
        arguments = (queries, key, value, mask, dropout, scaling, kwargs.get("position_bias"))
        attend = attend_with_dropout if query.shape[2] <= KEPT else attend_in_parts
        output = attend(*arguments)
    else:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        # Else it takes modules that don't say for causal ones (Splinter's), where no text of a batch is padded.
        kwargs["is_causal"] = False
        output, _ = sdpa_attention_forward(module, queries, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    if shared.rows is not None:
        shared.rows[layer] = cls_row(query, key, attention_mask, scaling, kwargs.get("position_bias"))
    if shared.gates is not None:
        output = output * shared.gates[layer, :, None, : output.shape[2], None]
    if only_cls:  # The modules around expect all tokens; those that are no [CLS] are not looked at.
        output = output.expand(-1, query.shape[2], -1, -1)
    return output, None


def without_tokens(attention_mask: torch.Tensor | None, unseen: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """An attention mask [batch, 1, query, key] in which the first query doesn't see the tokens `unseen`, [batch, key]."""
    hidden = unseen.new_zeros(len(unseen), 1, query.shape[2], unseen.shape[1])
    hidden[:, 0, 0] = unseen
    if attention_mask is None:
        return ~hidden
    if attention_mask.dtype == torch.bool:
        return attention_mask & ~hidden
    return attention_mask.masked_fill(hidden, torch.finfo(attention_mask.dtype).min)


def attend_with_dropout(query, key, value, attention_mask, dropout, scaling, position_bias=None) -> torch.Tensor:
    """Attention as its equation has it, with dropout on the weights; [batch, token, head, channel]."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3)).float() * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        # Not minus infinity: padding tokens may see no token at all where attention is local.
        lowest = torch.finfo(scores.dtype).min
        scores = (
            scores.masked_fill(~attention_mask, lowest) if attention_mask.dtype == torch.bool else scores + attention_mask
        )
    weights = fast_dropout(scores.softmax(-1).to(value.dtype), dropout)
    return torch.matmul(weights, value).transpose(1, 2)


def attend_in_parts(query, key, value, attention_mask, dropout, scaling, position_bias=None) -> torch.Tensor:
    """As `attend_with_dropout`, but what is kept for the backward pass, and what is held at any time, is small."""
    texts = max(1, PART // (query.shape[1] * query.shape[2] * key.shape[2]))

    def attend(part: slice) -> torch.Tensor:
        mask, bias = (
            None if each is None else each.expand(len(query), -1, -1, -1)[part] for each in (attention_mask, position_bias)
        )
        return attend_with_dropout(query[part], key[part], value[part], mask, dropout, scaling, bias)

    parts = [slice(start, start + texts) for start in range(0, len(query), texts)]
    return torch.cat([checkpoint(attend, part, use_reentrant=False) for part in parts])


def cls_row(query, key, attention_mask, scaling, position_bias=None) -> torch.Tensor:
    """The first row of softmax(q k^T * scaling), [batch, head, key], in fp32 whatever the autocast."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.matmul(query[:, :, :1].float(), key.float().transpose(2, 3)) * scaling
        if position_bias is not None:
            scores = scores + position_bias[:, :, :1].float()
        if attention_mask is not None:
            first = attention_mask[:, :, :1]
            scores = scores.masked_fill(~first, -torch.inf) if first.dtype == torch.bool else scores + first.float()
        return scores.softmax(-1).squeeze(2)


def install_cls_attention(encoder: nn.Module) -> ClsAttention:
    """Give an encoder the attention function above; its attention modules are found by one pass over two tokens.

    Raises:
        UserError: the encoder has no attention interface.
    """
    import transformers

    transformers.AttentionInterface.register("cls_attention", cls_attention_forward)
    transformers.AttentionMaskInterface.register("cls_attention", transformers.AttentionMaskInterface()["sdpa"])
    shared = ClsAttention()
    for module in encoder.modules():
        module.cls_attention = shared
    # The first linear layer that runs after a layer's attention is that attention's output projection.
    hooks = [
        module.register_forward_pre_hook(lambda module, _: note_projection(shared, module))
        for module in encoder.modules()
        if isinstance(module, nn.Linear)
    ]
    tokens = torch.zeros(1, 2, dtype=torch.long, device=next(encoder.parameters()).device)
    training = encoder.training
    try:
        encoder.set_attn_implementation("cls_attention")
        with torch.no_grad():
            encoder.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    except (ValueError, KeyError, TypeError) as error:
        raise no_interface(encoder, f": {error}") from None
    finally:
        encoder.train(training)
        for hook in hooks:
            hook.remove()
    if not shared.num_heads or len(shared.projections) != len(shared.num_heads):
        raise no_interface(encoder, "")
    for layer, projection in enumerate(shared.projections):
        projection.register_forward_pre_hook(partial(gate_pruned_heads, layer))
    layers = encoder.config.num_hidden_layers
    if len(shared.num_heads) != layers:
        raise UserError(
            f"the {layers} layers of {type(encoder).__name__} share {len(shared.num_heads)} attention modules, so that no "
            f"head can be pruned in one layer alone; take {FAMILIES}"
        )
    return shared


def compute_only_cls(encoder: nn.Module, shared: ClsAttention) -> None:
    """Leave out what the last layer computes for all tokens but the first, where the encoder's modules allow it.

    The last hidden state then has one token, and that one is the same. In BERT and its kin a module of its own takes the
    attention's output and the residual stream together; from there on nothing mixes tokens.
    """
    for module in encoder.modules():
        takes = list(inspect.signature(module.forward).parameters)
        if shared.projections[-1] in module.children() and takes == ["hidden_states", "input_tensor"]:
            module.register_forward_pre_hook(lambda module, states: tuple(state[:, :1] for state in states))
            shared.only_cls = True


def note_projection(shared: ClsAttention, module: nn.Linear) -> None:
    if len(shared.projections) < len(shared.num_heads):
        shared.projections.append(module)


def gate_pruned_heads(layer: int, projection: nn.Linear, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    """Set what pruned heads put into their layer's output projection, [..., head * channel], to 0."""
    shared: ClsAttention = projection.cls_attention
    heads = shared.pruned.get(layer)
    if not heads:
        return None
    (output,) = inputs
    gate = output.new_ones(shared.num_heads[layer], 1)
    gate[heads] = 0
    return ((output.unflatten(-1, (len(gate), -1)) * gate).flatten(-2),)


def no_interface(encoder: nn.Module, reason: str) -> UserError:
    return UserError(
        f"{type(encoder).__name__} doesn't use transformers' attention interface, which PURE needs to see [CLS] "
        f"attention and to prune heads{reason}; take {FAMILIES}"
    )


def remove_pruned_heads(shared: ClsAttention) -> None:
    """Zero the columns of the output projections that belong to pruned heads: the same function without any gate.

    In place; the columns are those of [head, channel], flattened.
    """
    for layer, heads in shared.pruned.items():
        weight = shared.projections[layer].weight.detach()  # [out, head * channel]
        weight.view(weight.shape[0], shared.num_heads[layer], -1)[:, heads] = 0


def cls_variance(row: torch.Tensor, max_len: int) -> torch.Tensor:
    """Variance of [CLS] attention rows as if padded to `max_len`, without padding.

    Var = (sum a^2 - (sum a)^2 / N) / (N - 1) over the first N = max_len - 1 positions: the unbiased variance of those
    positions of the padded row, whose further entries are zeros (the paper's variance; the published code leaves the last
    position out).

    Args:
        row: [..., key], attention of [CLS] to each token; masked tokens have 0.
        max_len: N + 1.

    Returns:
        [...]
    """
    n = max_len - 1
    row = row[..., :n].float()
    return (row.square().sum(-1) - row.sum(-1).square() / n) / (n - 1)


def cls_entropy(row: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of [CLS] attention rows, [..., key] to [...]."""
    return torch.special.entr(row.float()).sum(-1)
