"""Many callers, full batches: `batcher` merges requests, `passthrough` hands them on, `cores` shares idle cores."""
