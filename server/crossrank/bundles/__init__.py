"""Models on disk: what a bundle is, and where one comes from.

`bundle` reads one; `cache` keeps converted ones; `catalog` names known models; `resolve` turns a name into a bundle,
with `hub` (downloads), `hub_ref`, `model_name`, `layout` and `model_directory` (which files a model consists of).
"""
