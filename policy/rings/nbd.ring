# Target nbd, the ring of each queue: requests come and go here. Its sockets are not in this ring, where URING_CMD would reach
# their options (setsockopt): policy/rings/nbd-sockets.ring.
@include common.ring
# Of the event by which the socket's ring wakes the queue. The file table has that and the ublk device.
op READ
