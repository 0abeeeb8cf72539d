"""What a layout, a feature or a batch size is worth: the measurements behind `virtq bench`.

The engines (`rings`, `net`, `blk`, `python`, `scale`) say what is compared with what, as `case`s.
`measure` is the frame: contenders take turns in short windows, and what comes out are medians,
bests, spread and counts (`comparison`). `result` is what a run leaves behind, `machine` what it ran
on.
"""
