"""Engines behind one Protocol, and the choice among them.

names -> base               the lists of engines and precisions; what an engine must do
embedded -> native, openvino, onnxruntime, cuda (cuda_session, cuda_gate)
candidates -> select        the ordered table of all of them; loading the first line that serves
agreement, memory, cpu      comparing logits before serving; returning memory; facts about the CPU
tuning, triton/             settings found fastest here; the engine that is a Triton server
"""
