/* Shared by launcher.c, copier.c and undertaker.c; not for callers of this module. */
#pragma once
#include "CLauncher.h"

/* fork with a pidfd; `namespaces` is CLONE_NEWPID for a worker, else 0. The child starts with default signal
 * handlers. */
pid_t ubd_start(unsigned long namespaces, int *pidfd);
/* In the child: moves `kept` to high numbers and closes all other descriptors. Returns -1 with errno. */
int ubd_keep_only(int *kept, unsigned count);
/* In the child: reports that it reached this step, or with an errno, that the step failed. */
void ubd_report(int pipe, int step, int error);
/* In the caller: waits until the child reports that it closed foreign descriptors, reports a failure, or dies. */
void ubd_wait_until_begun(int pipe);
/* In the parent of `pid` (-1: the fork failed, with errno): closes its copy of the pipe's writing end and waits until
 * the child reports UBD_LAUNCH_BEGUN. Returns 0 or a negative errno; on failure the child is reaped and its pidfd
 * closed. */
int ubd_begun(pid_t pid, int pidfd, const int *pipe);
