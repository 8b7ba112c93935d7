# Target fault: reads and writes its file and its control file, flushes the file (FSYNC). No FALLOCATE: a thread discards by system
# calls, whose mode seccomp restricts (policy/seccomp/target-fault.policy).
@include common.ring
op READ
op WRITE
op FSYNC
# The queue waits with it for the thread that discards.
op FUTEX_WAIT
# A request that is delayed, and the pause between two looks at the control file. It names no file and moves no data; at most
# one is under way for each request and one for the queue.
op TIMEOUT
