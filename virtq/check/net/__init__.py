"""What it takes to judge a network device.

header    the header of a packet with every field that 1.4 has (5.1.6)
frames    Ethernet frames: made, taken apart, cut into segments, hashed
far_end   the other end of the device's wire
nic       a network device that is live: its queue pairs and its control queue
"""
