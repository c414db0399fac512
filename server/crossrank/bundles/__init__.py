"""Read, cache and find models on disk.

`bundle` reads a bundle; `cache` stores converted ones; `catalog` lists known models; `hub` and `hub_ref` download;
`layout` and `model_directory` choose and check a model's files; `model_name` checks names. `crossrank.resolve` combines
them.
"""
