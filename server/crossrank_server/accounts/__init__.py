"""API keys, limits, prepaid credit and metering.

base.py      the seam: `Accounts`, and what a server without keys does
metered.py   accounts with keys: key_cache.py finds them by keys.py, ledger.py admits with the SQL of admission.py and
             settles, meter.py sums up usage, journal.py keeps what the store does not take, windows.py computes sliding
             windows, redis_limits.py counts limits in Redis
threads.py   calls to stores off the event loop, within a time limit and behind a circuit breaker
clock.py     the system's time, which tests hand in, and the store's; prices.py the price list
store.py     transactions on the tables of tables.py; databases.py opens SQLite or PostgreSQL; usage.py reads sums
"""
