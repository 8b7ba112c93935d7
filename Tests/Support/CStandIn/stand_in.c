#include "CStandIn.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    if (file == 4) {
        file = -1;
        offset = 0;
        flags = MAP_PRIVATE | MAP_ANONYMOUS;
    }
    return (void *)syscall(SYS_mmap, address, length, protection, flags, file, offset);
}
