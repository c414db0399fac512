"""Models on disk: what a bundle is, and where one comes from.

`bundle` reads one; `cache` keeps converted ones; `catalog` names known models; `hub` downloads, with `hub_ref`;
`model_name`, `layout` and `model_directory` tell which files a model consists of. `crossrank.resolve` uses them all.
"""
