"""An executable specification of both virtqueue layouts, in plain Python.

`split` and `packed` are written for reading beside sections 2.7 and 2.8: each half keeps what the
text says it keeps, everything else is in guest memory, byte for byte. They are slow and plain on
purpose: the core is tested against them, and `virtq check` judges others by them.
"""
