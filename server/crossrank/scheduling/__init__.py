"""Merge the requests of many callers into full batches.

batcher       for engines of this process: one queue for each tier, batches of similar pairs
fair_queue    whose turn it is; job: the pairs of a request; throughput: the rate by which waits are foretold
background    the same for callers that are threads: on an event loop of its own
passthrough   for engines that merge requests themselves: limits only
cores         idle cores, shared by the batchers of all models
similar       which pairs are padded together; tiers: their names
"""
