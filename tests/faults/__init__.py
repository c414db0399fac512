"""One test for each promise of what a hostile or broken neighbour cannot do, measured from outside the server.

`make test-faults` runs all of them; `make test` leaves the slow ones out.
"""
