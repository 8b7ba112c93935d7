# Target loop: reads and writes its backing file, flushes it (FSYNC), discards and zeroes in it (FALLOCATE).
@include common.ring
in copy op READ
in copy op WRITE
# Without a copy: between the file and the request's own pages, which the driver has registered with the ring.
in zero-copy op READ_FIXED
in zero-copy op WRITE_FIXED
op FSYNC
op FALLOCATE
