/* Opens descriptors 0 to 2 before anything else runs. A program may be started with some of them closed; the next file
 * that it opens would become its standard output and receive what it prints. It is a constructor in C, since the Swift
 * runtime runs code before main; the priority puts it before the program's other constructors. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

__attribute__((constructor(101))) static void open_standard_files(void) {
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
