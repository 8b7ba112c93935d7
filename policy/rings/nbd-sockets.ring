# Target nbd, the second ring of each queue: the connected socket to its server, which is the only file of this ring. Reads and
# writes have no flags, no address and no control data, so no descriptor goes out, none is installed, and nothing can be connected.
# A file that comes over a Unix socket is closed by the read that takes the bytes with it; ubd-nbd forbids them (SO_PASSRIGHTS).
# Spread over several places: the header of each reply, and its data.
op READV
# All requests that wait go out in one.
op WRITEV
flags required FIXED_FILE

# As in common.ring, which is not included: it has URING_CMD.
register ENABLE_RINGS
