/* Keeps what main gets, which a Swift program does not (include/arguments.h). */
#include "include/arguments.h"
#include <stdlib.h>
#include <unistd.h>

static int count;
static char *const *words;

int ubd_argument_count(void) { return count; }
char *const *ubd_arguments(void) { return words; }

/* glibc calls constructors with main's arguments. Before the constructors of Swift's runtime: a static program without /proc finds
 * its own path neither there nor from its loader, and the runtime aborts unless SWIFT_ROOT names a folder. */
__attribute__((constructor(101))) static void keep_arguments(int argc, char **argv) {
    count = argc;
    words = argv;
    if (getenv("SWIFT_ROOT") == NULL && access("/proc/self/exe", F_OK) != 0) setenv("SWIFT_ROOT", "/", 0);
}
