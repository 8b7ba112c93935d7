# Target nbd, the second ring of each queue: the connected socket to its server, which is the only file of this ring. Reads and
# writes have no flags, no address and no control data, so no descriptor goes out or comes in, and nothing can be connected.
op READ
# All requests that wait go out in one.
op WRITEV
flags required FIXED_FILE

# As in common.ring, which is not included: it has URING_CMD.
register ENABLE_RINGS
