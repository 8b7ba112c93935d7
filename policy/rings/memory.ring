# Target memory: reads and writes its memfd. No FSYNC: the disk has no cache to flush. No FALLOCATE: a thread discards and zeroes
# by system calls, whose mode seccomp restricts (policy/seccomp/target-loop.policy).
@include common.ring
in copy op READ
in copy op WRITE
# Without a copy: between the memfd and the request's own pages, which the driver has registered with the ring.
in zero-copy op READ_FIXED
in zero-copy op WRITE_FIXED
# The queue waits with it for the thread that discards and zeroes.
op FUTEX_WAIT
