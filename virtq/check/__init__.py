"""A judge of devices: requirement by requirement, what holds and what does not.

catalogue   the requirements of VIRTIO 1.4, as data
case        what a case is, and its verdicts
session     one initialized device, with rings of the executable specification (`virtq.model`)
work        requests that a device type is known to serve
device      the cases, a file for each area
run         all cases against one device, each in every kind of ring that it is about
results     what came out, for people and for programs
"""
