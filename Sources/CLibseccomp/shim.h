/* libseccomp, which compiles policy/ to the kernel's filter programs. */
#include <features.h>
#include <seccomp.h>
