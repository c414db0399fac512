"""Compute in Triton servers: `engine` implements the Protocol over a `pool` of `endpoint`s.

`address` finds servers, `contract` checks that theirs is our model, `buckets` cuts batches into shapes.
"""
