"""What a layout, a feature or a batch size is worth: the measurements behind `virtq bench`.

`measure` is the frame: contenders take turns in short windows, and what comes out are medians,
bests, spread and counts. `result` is what a run leaves behind, `machine` what it ran on. The
engines (`rings`, `net`, `blk`, `python`, `scale`) say what is compared with what.
"""
