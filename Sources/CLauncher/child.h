/* What launcher.c, copier.c and undertaker.c share: not for callers of this module. */
#pragma once
#include "CLauncher.h"

/* fork with a pidfd, for a worker in a new pid namespace (CLONE_NEWPID; else 0). Handlers of signals are the default ones again in the child. */
pid_t ubd_start(unsigned long namespaces, int *pidfd);
/* In the child: moves `kept` out of the way and closes everything else; -1 with errno. */
int ubd_keep_only(int *kept, unsigned count);
/* In the child: says that it has come to this step, or failed there. */
void ubd_report(int pipe, int step, int error);
/* In the caller: until the child has closed what is not its own, and says so, or has failed at that, or died. */
void ubd_wait_until_begun(int pipe);
/* In the parent of `pid` (-1: the fork failed, with errno): closes its copy of the pipe's writing end and waits until the
 * child has said that it has begun. Returns 0, or a negated errno; then the child is gone and its pidfd closed. */
int ubd_begun(pid_t pid, int pidfd, const int *pipe);
