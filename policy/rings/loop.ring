# Target loop: reads and writes its backing file, flushes it (FSYNC), discards and zeroes in it (FALLOCATE).
@include common.ring
op READ
op WRITE
op FSYNC
op FALLOCATE
