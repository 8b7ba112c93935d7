/* What must come before Swift's runtime, which runs code before main; the priority puts it before the program's other
 * constructors. */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static struct arguments { int count; char *const *words; } given;
char *const *ubd_arguments(int *count) { *count = given.count; return given.words; }

/* Opens descriptors 0 to 2. A program may be started with some of them closed; the next file that it opens would become its
 * standard output and receive what it prints. */
static void open_standard_files(void) {
    for (int number = 0; number <= 2; number++) {
        if (fcntl(number, F_GETFD) != -1) continue;
        int file = open("/dev/null", O_RDWR);
        /* A container may have no /dev/null. Reads and writes of an O_PATH file fail with EBADF, like those of a closed
         * descriptor. */
        if (file == -1) file = open("/", O_PATH);
        /* The kernel gives the lowest free number (open(2)). If it does not, end rather than leave a number unused. */
        if (file != number) _exit(1);
    }
}

/* glibc calls constructors with main's arguments. */
__attribute__((constructor(101))) static void start(int argc, char **argv) {
    given = (struct arguments){argc, argv};
    open_standard_files();
    /* A static program without /proc finds its own path neither there nor from its loader, and Swift's runtime aborts then unless
     * SWIFT_ROOT names a folder. */
    if (getenv("SWIFT_ROOT") == NULL && access("/proc/self/exe", F_OK) != 0) setenv("SWIFT_ROOT", "/", 0);
}
