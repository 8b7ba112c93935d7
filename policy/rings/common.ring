# What every worker's ring has in common. Grammar: policy/README.md.

# The ublk command by which requests are fetched and committed. Which device it reaches is decided by the ring's file
# table, which is closed: the number of a file that is not in it means nothing to the ring.
op URING_CMD

# Every operation must name a file of that table.
flags required FIXED_FILE

# The kernel may choose one of the buffers that the ring was given, for the tags of new requests.
in batch flags allowed BUFFER_SELECT

# After sealing no file, buffer, personality or event can be registered. ENABLE_RINGS is the one call that does no harm;
# at least one must be named, or kernels from 7.0 leave them all open.
register ENABLE_RINGS
