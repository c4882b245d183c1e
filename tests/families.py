"""A small encoder and tokeniser of every family."""

import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertTokenizer,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
    RobertaTokenizer,
    TokenizersBackend,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

from encoder.classifier import Classifier

CLASSES = ("bad", "good", "so-so")
SIZE = dict(vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
BERT_LIKE = dict(**SIZE, max_position_embeddings=64)
ROBERTA_LIKE = dict(**BERT_LIKE, pad_token_id=1, type_vocab_size=1)
FAMILIES = {
    "BERT": BertConfig(**BERT_LIKE),
    "RoBERTa": RobertaConfig(**ROBERTA_LIKE),
    "XLM-RoBERTa": XLMRobertaConfig(**ROBERTA_LIKE),
    "CamemBERT": CamembertConfig(**ROBERTA_LIKE),
    "DistilBERT": DistilBertConfig(
        vocab_size=100, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=64
    ),
    "ELECTRA": ElectraConfig(**BERT_LIKE, embedding_size=16),
    # Two layers see no further than 4 tokens to each side.
    "ModernBERT": ModernBertConfig(
        **SIZE, max_position_embeddings=64, local_attention=8, global_attn_every_n_layers=2,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    ),
}  # fmt: skip


def make_classifier(family: str) -> Classifier:
    """Random weights, 3 layers of 4 heads, 3 classes; large weights, so that attention is far from uniform."""
    torch.manual_seed(0)
    model = AutoModel.from_config(FAMILIES[family])
    if hasattr(model, "pooler"):
        model.pooler = None
    with torch.no_grad():  # Biases and norms start at 0 and 1, which would hide where they are lost.
        for parameter in model.parameters():
            parameter.add_((0.1 if parameter.dim() == 1 else 0.4) * torch.randn_like(parameter))
    model.config.id2label = dict(enumerate(CLASSES))
    model.config.label2id = {name: number for number, name in enumerate(CLASSES)}
    classifier = Classifier(model, len(CLASSES), dropout=0.1, seed=0).eval()
    torch.nn.init.normal_(classifier.head.bias)
    return classifier


WORDS = "the a film plot was warm dull bright hollow <br".split()


def make_tokeniser(family: str):
    """A tokeniser as the family has it; a few words are known, the rest is cut into letters or unknown."""
    special = {"RoBERTa": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]}
    if family in ("RoBERTa", "XLM-RoBERTa", "CamemBERT"):
        letters = "Ġabcdefghijklmnopqrstuvwxyz."
        if family == "RoBERTa":
            vocabulary = {token: at for at, token in enumerate([*special["RoBERTa"], *letters])}
            return RobertaTokenizer(vocab=vocabulary, merges=[])
        pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        return XLMRobertaTokenizer(
            vocab=[*pieces, *((f"▁{word}", -2.0) for word in WORDS), ("▁", -3.0), *((c, -4.0) for c in letters)]
        )
    vocabulary = {token: at for at, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokeniser = BertTokenizer(vocab=vocabulary)
    if family == "ModernBERT":
        special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
        inputs = ["input_ids", "attention_mask"]
        return TokenizersBackend(tokenizer_object=tokeniser.backend_tokenizer, model_input_names=inputs, **special)
    return tokeniser
