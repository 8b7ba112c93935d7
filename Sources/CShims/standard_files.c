/* Descriptors 0 to 2 are open before anything else of the program runs. A program may be started with some of them closed;
 * the next file it opened would then become its standard output, and what it prints would go into that file. A constructor
 * in C, because the Swift runtime runs code of its own before main; the priority puts it before all other constructors of
 * the program. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

__attribute__((constructor(101))) static void open_standard_files(void) {
    for (int number = 0; number <= 2; number++) {
        if (fcntl(number, F_GETFD) != -1) continue;
        int file = open("/dev/null", O_RDWR);
        /* A container may have no /dev/null. Every read and write of an O_PATH file fails with EBADF, as those of a closed
         * descriptor do. */
        if (file == -1) file = open("/", O_PATH);
        /* The kernel gives the lowest free number (open(2)). Whatever else comes out: never go on with a hole. */
        if (file != number) _exit(1);
    }
}
