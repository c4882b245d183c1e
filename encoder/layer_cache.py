"""Evaluating nearly the same encoder again and again: each pass starts at the lowest layer in which something changed."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from encoder.classifier import Classifier
from encoder.cls_attention import Heads

LIMIT = 2**30
"""Bytes that are kept at most; where it would be more, every second layer's, or third's, and so on."""


class LayerCache:
    """The hidden states that enter an encoder's layers, kept from one pass over a set of texts to the next.

    Kept too is what attention makes of them up to the output projection, where heads are gated, if a module returns that.
    Valid while the batches are the same, no weight changes and no dropout is drawn; only `attention.pruned` may change.
    Where the encoder's layers can't be told, every pass is a whole one.
    """

    def __init__(self, classifier: Classifier, tokens: int):
        """tokens: of all texts together."""
        self.attention = classifier.attention
        self.layers = layers_of(classifier)
        self.attentions = [attention_of(layer, self.attention.projections) for layer in self.layers]
        size = 2 * len(self.layers) * tokens * classifier.encoder.config.hidden_size * 4
        self.stride = -(-size // LIMIT)
        self.states: list[dict[int, torch.Tensor]] = []  # Of each batch: layer to [text, token, channel].
        self.attended: list[dict[int, tuple]] = []  # Of each batch: layer to what its attention module returned.
        self.pruned: Heads | None = None
        self.start, self.batch = 0, -1

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Within the block, one pass over the texts is made with `attention.pruned` as it is now."""
        self.start, self.batch = self.first_changed(), -1
        modules = [module for module in (*self.layers, *self.attentions) if module is not None]
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self.forward, number, layer.forward)
        for number, attention in enumerate(self.attentions):
            if attention is not None:
                attention.forward = partial(self.attend, number, attention.forward)
        try:
            yield
            self.pruned = self.attention.pruned
        except BaseException:
            self.pruned, self.states, self.attended = None, [], []  # Half of the batches are of the pass before.
            raise
        finally:
            for module in modules:
                del module.forward

    def first_changed(self) -> int:
        """The layer at which the next pass starts."""
        if self.pruned is None or not self.layers:
            return 0
        numbers = range(len(self.layers))
        changed = [layer for layer in numbers if self.pruned.get(layer, []) != self.attention.pruned.get(layer, [])]
        first = min(changed, default=len(self.layers) - 1)
        return first - first % self.stride

    def forward(self, number: int, layer: Callable, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if number == 0:
            self.batch += 1
            if self.batch == len(self.states):
                self.states.append({})
                self.attended.append({})
        if number < self.start:
            return hidden_states
        if number == self.start and number > 0:
            hidden_states = self.states[self.batch][number]
        elif number % self.stride == 0 and number > 0:
            self.states[self.batch][number] = hidden_states
        return layer(hidden_states, *args, **kwargs)

    def attend(self, number: int, attention: Callable, *args, **kwargs) -> tuple:
        kept = self.attended[self.batch]
        if number == self.start and number in kept:
            return kept[number]
        output = attention(*args, **kwargs)
        if number % self.stride == 0:
            kept[number] = output
        return output


def layers_of(classifier: Classifier) -> list[nn.Module]:
    """The encoder's layers, one attention each, that take and return hidden states; empty if they can't be told."""
    for modules in classifier.encoder.modules():
        if isinstance(modules, nn.ModuleList) and len(modules) == len(classifier.attention.num_heads):
            numbers = [
                [part.cls_attention_layer for part in layer.modules() if hasattr(part, "cls_attention_layer")]
                for layer in modules
            ]
            if numbers == [[number] for number in range(len(modules))] and returns_states(classifier, modules):
                return list(modules)
    return []


def attention_of(layer: nn.Module, projections: list[nn.Linear]) -> nn.Module | None:
    """A layer's attention module; None if the output projection, where heads are gated, is a part of it."""
    (attention,) = (part for part in layer.modules() if hasattr(part, "cls_attention_layer"))
    return None if any(part in projections for part in attention.modules()) else attention


@torch.inference_mode()
def returns_states(classifier: Classifier, layers: nn.ModuleList) -> bool:
    """Whether each layer's first argument and its result are tensors, the one's result the other's argument."""
    seen: list[tuple] = []
    hooks = [layer.register_forward_hook(lambda layer, args, output: seen.append((args, output))) for layer in layers]
    training = classifier.training
    tokens = torch.zeros(1, 2, dtype=torch.long, device=classifier.head.weight.device)
    classifier.eval()(tokens, torch.ones_like(tokens))
    classifier.train(training)
    for hook in hooks:
        hook.remove()
    tensors = all(args and torch.is_tensor(args[0]) and torch.is_tensor(output) for args, output in seen)
    return tensors and all(seen[at][1] is seen[at + 1][0][0] for at in range(len(seen) - 1))
