/* The arguments of main, as bytes. Swift's CommandLine reads them from /proc/self/cmdline: where /proc is not mounted, as in a
 * chroot, it has none, and `ubd del` would print the help and end with status 0. */
#pragma once

int ubd_argument_count(void);
char *const *ubd_arguments(void);
