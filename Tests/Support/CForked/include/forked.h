/* For tests of what ends a process. Swift Testing's exit tests wait for any child of the process, and a child of another test that
 * nobody has reaped yet keeps them waiting for ever. This waits for its own child alone. In C, because Swift has no fork. */
#pragma once

/* Runs `body` in a copy of this process, which has one thread and no standard error, and ends with status 0 after it, or by SIGALRM
 * after a minute. Returns what waitpid(2) says of its end, or -1. */
int forked_status(void (*body)(void *), void *context);
