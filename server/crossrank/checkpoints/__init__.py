"""What `save_pretrained` writes, opened without torch and transformers: config.json, safetensors and a tokenizer.

config          what config.json and its companions say; what gives no score for a pair is refused
tokens          the tokenizer as transformers uses it, from tokenizer_settings, tokenizer_classes and pair_template
families        which families are opened, and where each keeps its weights
weights         the weights by role, mapped from the files by tensors, checked against config.json
graph           the ONNX graph of those weights, with emitter, activations and position_bias
convert         a bundle of it all
"""
