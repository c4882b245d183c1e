"""reinit_layers: draw the top layers of the suspicious encoder anew, then fine-tune (Zhang et al., ICLR 2021)."""

import torch
from torch import nn

from config import Config
from defences.defence import Defence, Stage
from defences.shared import train_released
from encoder.classifier import Classifier
from encoder.layer_cache import layers_of
from pipeline.defender import Phase
from pipeline.runs import DEFENCE_FIELDS
from pipeline.training import cross_entropy
from util import UserError


@torch.no_grad()
def draw_anew(classifier: Classifier, number: int, seed: int) -> None:
    """Draw the weights of the highest layers as BERT's were before it was trained; in place.

    Linear maps: normal with standard deviation `initializer_range`, biases 0; norms: 1 and 0.

    Args:
        number: how many layers.

    Raises:
        UserError: the encoder has fewer, or its layers can't be told.
    """
    layers = layers_of(classifier)
    if number > len(layers):
        raise UserError(
            f"--reinit_layers {number} is out of range: {len(layers)} layers of {type(classifier.encoder).__name__} can be "
            f"told apart; expected 1 to {len(layers)}"
            if layers
            else f"the layers of {type(classifier.encoder).__name__} can't be told apart; take an encoder such as BERT or "
            "RoBERTa, or another --defence"
        )
    generator = torch.Generator().manual_seed(seed)
    for layer in layers[-number:]:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                drawn = torch.empty(module.weight.shape)
                module.weight.copy_(drawn.normal_(0, classifier.encoder.config.initializer_range, generator=generator))
                if module.bias is not None:
                    module.bias.zero_()
            elif type(module).__name__.endswith("Norm"):  # RMSNorm too, of which each family has a class of its own.
                for name, value in (("weight", 1.0), ("bias", 0.0)):
                    if (parameter := getattr(module, name, None)) is not None:
                        parameter.fill_(value)


def fine_tune_below_new_layers(config: Config) -> dict:
    """Draw the top layers anew, fine-tune; write reinit_model and reinit_layers.json.

    Returns:
        What the record holds: settings, and what `pipeline.defender.train_and_measure` says.

    Raises:
        UserError: something to read is missing, a folder is not writable, the loss is not finite, or the encoder has fewer
            layers.
    """
    phases = [Phase("reinit_layers", "fine-tuning with new top layers", cross_entropy, config.epochs)]
    return train_released(
        config, REDRAWING, phases, lambda classifier: draw_anew(classifier, config.reinit_layers, config.seed)
    )


def told(config: Config) -> str:
    return (
        f"The top {config.reinit_layers} layers of the released encoder, where fine-tuning changes most, are drawn anew at "
        "random, and with them goes what a backdoor wrote there. Then the encoder is fine-tuned on clean texts."
    )


def done(record: dict) -> str:
    return (
        f"The top {record['settings']['reinit_layers']} layers of the encoder were drawn anew at random, and the encoder "
        "was fine-tuned on the clean texts."
    )


REDRAWING = Stage(
    run="defences.reinit_layers:fine_tune_below_new_layers",
    record="reinit_layers.json",
    product="reinit_model",
    reads=(*DEFENCE_FIELDS, "reinit_layers"),
    title="New top layers (reinit_layers)",
    told=told,
    done=done,
    phases={"reinit_layers": "fine-tuning with new top layers (reinit_layers)"},
    passes=lambda config: config.epochs,
)

REINIT_LAYERS = Defence(paper="Zhang et al., ICLR 2021", last=REDRAWING)
