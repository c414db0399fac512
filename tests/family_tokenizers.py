"""The kind of tokenizer that each family has, trained on the spot on the odd texts and generated words.

BERT, ELECTRA, MPNet, DistilBERT    WordPiece; MPNet's special tokens are RoBERTa's, DistilBERT's is cased
RoBERTa, ModernBERT                 byte-level BPE; ModernBERT has added tokens for runs of spaces
XLM-R, DeBERTa-v2                   Unigram over text normalized nearly as sentencepiece does it

write_tokenizer_of("mpnet", path, 128)    what transformers saves: tokenizer.json and its companions
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tests import odd_texts

VOCABULARY = 600
_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
# In the order of their ids, which start at 0.
_SPECIALS = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "mpnet": ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "xlm-roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "deberta-v2": ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
    "modernbert": ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"],
}
_CLASSES = {
    "bert": "BertTokenizerFast",
    "electra": "ElectraTokenizerFast",
    "distilbert": "DistilBertTokenizerFast",
    "mpnet": "MPNetTokenizerFast",
    "roberta": "RobertaTokenizerFast",
    "xlm-roberta": "XLMRobertaTokenizerFast",
    "deberta-v2": "DebertaV2TokenizerFast",
    "modernbert": "PreTrainedTokenizerFast",
}


def write_tokenizer_of(family: str, path: Path, window: int, *, segments: bool = True) -> int:
    """Save a tokenizer of the family as transformers does; return the size of its vocabulary.

    Args:
        family: A `model_type`.
        path: The checkpoint's directory.
        window: `model_max_length` in tokens.
        segments: Whether models with segments are given them.
    """
    import transformers

    settings: dict[str, Any] = {f"{role}_token": token for role, token in _roles(family).items()}
    if family == "distilbert":
        settings["do_lower_case"] = False
    if not segments or family in ("distilbert", "modernbert"):
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    backend = trained(family)
    kind = getattr(transformers, _CLASSES[family])
    tokenizer = kind(tokenizer_object=backend, model_max_length=window, **settings)
    tokenizer.save_pretrained(path)
    return len(tokenizer)


def special_ids(family: str) -> dict[str, int]:
    """Return the ids that config.json names."""
    specials = _specials(family)
    named = {"pad", "cls", "sep"} if family == "modernbert" else {"pad", "bos", "eos"}
    return {f"{role}_token_id": specials.index(token) for role, token in _roles(family).items() if role in named}


def _roles(family: str) -> dict[str, str]:
    if family == "mpnet":
        return {**_ROBERTA, "unk": "[UNK]"}
    return _ROBERTA if "roberta" in family else _BERT


def _specials(family: str) -> list[str]:
    return _SPECIALS.get(family, _SPECIALS["bert"])


@cache
def trained(family: str) -> Any:
    """Return a `tokenizers.Tokenizer`; training takes some hundredths of a second."""
    from tokenizers import AddedToken

    build = (
        _unigram
        if family in ("xlm-roberta", "deberta-v2")
        else _bpe
        if family in ("roberta", "modernbert")
        else _wordpiece
    )
    tokenizer = build(family)
    specials = _specials(family)
    # In the families with a `<mask>`, and in ModernBERT, it takes the space before it.
    takes_space = "<mask>" in specials or family == "modernbert"
    tokenizer.add_special_tokens(
        [
            AddedToken(token, lstrip=takes_space and token == specials[-1], special=True, normalized=False)
            for token in specials
        ]
    )
    if family == "modernbert":
        tokenizer.add_tokens([AddedToken(" " * count, normalized=False) for count in range(2, 8)])
    tokenizer.post_processor = _framing(family, tokenizer)
    return tokenizer


def _texts() -> list[str]:
    """Some characters of the texts that are asked for stay unknown."""
    return [*odd_texts.LANGUAGES, *odd_texts.ODD[::2], *(odd_texts.words(50, seed) for seed in range(20))]


def _wordpiece(family: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    unknown = _roles(family)["unk"]
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=family != "distilbert")
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=_specials(family), show_progress=False, limit_alphabet=200
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _bpe(family: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if family == "modernbert":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_specials(family),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _unigram(family: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    # What the compiled tables of sentencepiece's nmt_nfkc do, which is no part of this library.
    steps = [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    if family == "xlm-roberta":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    else:
        steps = [normalizers.Strip(), *steps]
        tokenizer.pre_tokenizer = metaspace
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=_specials(family), unk_token=_roles(family)["unk"], show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _framing(family: str, tokenizer: Any) -> Any:
    from tokenizers import processors

    start, end = _roles(family)["cls"], _roles(family)["sep"]
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    if family == "roberta":
        return processors.RobertaProcessing(sep=ids[1], cls=ids[0], trim_offsets=True, add_prefix_space=False)
    second = 0 if family == "xlm-roberta" else 1
    middle = f"{end} {end}" if family in ("mpnet", "xlm-roberta") else end
    pair = f"{start} $A {middle} $B:{second} {end}:{second}"
    return processors.TemplateProcessing(single=f"{start} $A {end}", pair=pair, special_tokens=ids)
