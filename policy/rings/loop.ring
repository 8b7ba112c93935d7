# Target loop: reads and writes its backing file, flushes it (FSYNC), discards and zeroes in it. The worker removes the
# operations that its file does not need (Targets/Loop/LoopOpen.swift): each ring has at most one of the last two.
@include common.ring
in copy op READ
in copy op WRITE
# Without a copy: between the file and the request's own pages, which the driver has registered with the ring.
in zero-copy op READ_FIXED
in zero-copy op WRITE_FIXED
op FSYNC
# Only for a block device, where it cannot allocate: a ring cannot restrict its mode. For a regular file system calls do
# this, whose mode seccomp restricts (policy/seccomp/target-loop.policy).
op FALLOCATE
# Only for a regular file: the queue waits with it for the thread that makes those calls.
op FUTEX_WAIT
