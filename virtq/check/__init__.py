"""A judge of devices and drivers: requirement by requirement, what holds and what does not.

catalogue     the requirements of VIRTIO 1.4, as data
case          what a case is, its verdicts and its result
session       one initialized device, with rings of the executable specification (`virtq.model`)
front         a vhost-user front-end that does what it is told, right or wrong
work          requests that a device type is known to serve
device        the cases about devices, a file for each area
run           all of them against one device, each in every kind of ring that it is about
driver        the judge of drivers, which is their device
register_log  a driver judged by what it did to a device's registers
results       what came out, for programs
"""
