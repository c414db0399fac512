"""One answer for all protocols: `service` scores a request with a model of the `pool`.

`served` is a loaded model, `residency` decides which are loaded, `startup` builds all of it from settings. `listing`
and `state` report it.
"""
