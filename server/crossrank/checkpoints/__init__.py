"""Convert models written by `save_pretrained` to bundles, without torch and transformers.

config          reads config.json and its companions; refuses models that give no score for a pair
tokens          reads the tokenizer as transformers uses it: tokenizer_settings, tokenizer_classes, pair_template,
                vocabulary
families        describes the supported families and the names of their weights
weights         reads the weights by role from safetensors (tensors), and checks them against config.json
graph           builds the ONNX graph of those weights: emitter, activations, position_bias
convert         writes the bundle; converters finds the installed converter for all other models
"""
