"""Expert layers of others (and ours) behind one protocol, to be compared and timed.

A peer is installed, or is a folder that the person who runs a benchmark gives; none is vendored.
"""
