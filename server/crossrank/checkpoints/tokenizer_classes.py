"""List transformers' tokenizer classes by behaviour that tokenizer.json does not state; names are without `Fast`.

Source: models/*/tokenization_*_fast.py and models/auto/tokenization_auto.py of
https://github.com/huggingface/transformers, v4.57.6.
"""

from __future__ import annotations

# Classes whose arguments, or the arguments' defaults, override the settings of a BertNormalizer for case and accents,
# and in all but the last two classes those for Chinese characters.
REWRITING = {
    "BertTokenizer",
    "ConvBertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "FunnelTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "RealmTokenizer",
    "RetriBertTokenizer",
    "SqueezeBertTokenizer",
    "MPNetTokenizer",
    "SplinterTokenizer",
}
KEEPING_CHINESE = {"MPNetTokenizer", "SplinterTokenizer"}
BERT_TOKENS = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
# Classes that leave the prefix space as tokenizer.json states it unless their configuration sets it.
KEEPING_PREFIX = {"CodeLlamaTokenizer", "LlamaTokenizer", "MT5Tokenizer", "T5Tokenizer"}
# Classes that give no token_type_ids unless their configuration asks for them.
WITHOUT_TYPES = {
    "BartTokenizer",
    "BarthezTokenizer",
    "BigBirdTokenizer",
    "BlenderbotTokenizer",
    "BloomTokenizer",
    "CamembertTokenizer",
    "CodeGenTokenizer",
    "CodeLlamaTokenizer",
    "CohereTokenizer",
    "DistilBertTokenizer",
    "GPT2Tokenizer",
    "GPTNeoXTokenizer",
    "GemmaTokenizer",
    "LEDTokenizer",
    "LlamaTokenizer",
    "LongformerTokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "MPNetTokenizer",
    "MT5Tokenizer",
    "MvpTokenizer",
    "NllbTokenizer",
    "OpenAIGPTTokenizer",
    "PegasusTokenizer",
    "Qwen2Tokenizer",
    "ReformerTokenizer",
    "RetriBertTokenizer",
    "RobertaTokenizer",
    "T5Tokenizer",
    "XGLMTokenizer",
    "XLMRobertaTokenizer",
}
# The classes of transformers 5 that feed token_type_ids where their configuration says nothing: all others feed none,
# unlike those of transformers 4. Source: models/*/tokenization_*.py, v5.24.0.
WITH_TYPES_OF_5 = {
    "BertTokenizer",
    "CanineTokenizer",
    "ConvBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DebertaTokenizer",
    "DebertaV2Tokenizer",
    "FNetTokenizer",
    "LayoutLMv2Tokenizer",
    "MarkupLMTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
    "TapasTokenizer",
}
# Model types by the class that reads their tokenizer where no file names a class.
CLASSES = {
    "BartTokenizer": ("bart",),
    "BertTokenizer": ("bert", "ernie", "megatron-bert", "nezha", "qdqbert"),
    "BigBirdTokenizer": ("big_bird",),
    "CamembertTokenizer": ("camembert",),
    "ConvBertTokenizer": ("convbert",),
    "DistilBertTokenizer": ("distilbert",),
    "ElectraTokenizer": ("electra",),
    "FunnelTokenizer": ("funnel",),
    "GPT2Tokenizer": ("gpt2", "gpt_neo", "gptj", "opt"),
    "GPTNeoXTokenizer": ("gpt_neox", "mpt", "stablelm"),
    "GemmaTokenizer": ("gemma", "gemma2", "gemma3", "gemma3_text"),
    "LlamaTokenizer": ("llama", "ministral", "mistral", "mixtral", "phi3"),
    "LongformerTokenizer": ("longformer",),
    "MPNetTokenizer": ("mpnet",),
    "MobileBertTokenizer": ("mobilebert",),
    "Qwen2Tokenizer": ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    "RoFormerTokenizer": ("roformer",),
    "RobertaTokenizer": ("data2vec-text", "ibert", "mega", "mra", "roberta", "roberta-prelayernorm"),
    "SqueezeBertTokenizer": ("squeezebert",),
    "XLMRobertaTokenizer": ("xlm-roberta", "xlm-roberta-xl", "xmod"),
}
