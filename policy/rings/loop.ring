# Target loop: reads and writes its backing file, flushes it (FSYNC), discards and zeroes in it. The worker takes out what its
# file has no use for (Targets/Loop/LoopOpen.swift): each ring has at most one of the last two.
@include common.ring
in copy op READ
in copy op WRITE
# Without a copy: between the file and the request's own pages, which the driver has registered with the ring.
in zero-copy op READ_FIXED
in zero-copy op WRITE_FIXED
op FSYNC
# Only of a block device, where nothing can be allocated: its mode can't be restricted. Ranges of a regular file are done by
# system calls, whose mode is (policy/seccomp/target-loop.policy).
op FALLOCATE
# Only of a regular file: by this the queue waits for the thread that makes those calls.
op FUTEX_WAIT
