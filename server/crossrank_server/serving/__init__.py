"""Score requests of all protocols: `service` scores a request with a model of the `pool`.

served.py        a loaded model: tokenizer, engine and queue
slot.py          a model of the server, loaded or not, and its state
residency.py     loads the models of the slots and puts them to sleep, within a memory budget
pool.py          finds a slot by any name of its model
service.py       admission, tokenizing, scoring, order
startup.py       builds all of it from the settings; worker_share.py: how many processes, and which share each gets
listing.py, state.py  report it, at /v1/models and to Prometheus

Imports go one way: served < slot < residency < pool < service < startup.
"""
