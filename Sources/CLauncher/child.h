/* What launcher.c and copier.c share: not for callers of this module. */
#pragma once
#include "CLauncher.h"

/* fork with a pidfd, and with namespaces for a worker. Handlers of signals are the default ones again in the child. */
pid_t ubd_start(unsigned long namespaces, int *pidfd);
/* In the child: moves `kept` out of the way and closes everything else. */
int ubd_keep_only(int *kept, unsigned count);
/* In the child: says that it has come to this step, or failed there. */
void ubd_report(int pipe, int step, int error);
/* In the caller: until the child has closed what is not its own, and says so, or has failed at that, or died. */
void ubd_wait_until_begun(int pipe);
