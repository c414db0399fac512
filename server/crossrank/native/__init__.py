"""Encoder, tokenizer and padding in C++, called through ctypes. README.md here draws the encoder's layout.

library     the encoder of each kernel; loading and checking libraries
interface   the hash that a library and Python must share
weights     the arrays of a model by role
wordpiece   the tokenizer; padding: packed pairs to tensors
"""
