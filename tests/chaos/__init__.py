"""Known traffic, every packet accounted, while bpfilter and the host around it change at random.

`python -m tests.chaos --help`. Senders, receivers and the book that judges know nothing of
bpfilter: what a packet deserves follows from the rules that this tool itself has written.
"""
