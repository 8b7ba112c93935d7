# The lines for the rings of every worker. Grammar: policy/README.md.

# The ublk command that fetches and commits requests. It reaches only the devices in the ring's file table, which is closed:
# the number of a file that is not in the table is invalid in the ring.
op URING_CMD

# Every operation must name a file of that table.
flags required FIXED_FILE

# The kernel may choose one of the buffers that the ring was given for the tags of new requests.
in batch flags allowed BUFFER_SELECT

# After sealing no file, buffer, personality or event can be registered. ENABLE_RINGS does no harm, and at least one call
# must be listed: otherwise kernels from 7.0 on allow them all.
register ENABLE_RINGS
