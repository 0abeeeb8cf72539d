"""A judge of drivers: virtq is the device, over vhost-user, patient or hostile by turns.

record    what was seen of a driver: its messages, its buffers as they stood, its notifications
ring      one virtqueue of the driver's, by the device's half of the executable specification
          (`split_half`, `packed_half`)
peer      one front-end, from its connection to its end
roles     what each device type is, and how it serves a buffer
start     how a driver comes: it is started, or waited for
bench     who is at the socket, and what is known of the driver so far
context   what a case is given
run       all cases against one driver
cases     the cases, a file for each area


How a case is written
---------------------

A function in a file of `cases/`, with `@case(ids..., party="driver", ...)`; its docstring is for
the author of the driver. It gets a `DriverContext` and does one of three things:

    driver.seen()          what was written down of a driver that was served plainly: for what can
                           be read off its buffers, words and messages. Costs nothing: one run of
                           the driver serves all such cases of a kind of ring.
    driver.live()          the driver at work; `live.ring` holds the buffers of its work queue, and
                           nothing is used but what the case uses. The next case goes on with the
                           same driver if this one leaves it well.
    driver.fresh(offer)    a driver that has just connected, before it has said anything; for what
                           it does while it initializes, and for what no device should do
                           (`hostile=True`: those come last, each with a driver of its own).

It raises `Broken` by `expect`, `NotObservable` where the driver gives no occasion, and `Stalled`
comes by itself where it is waited for a buffer that does not come.
"""
