/* Stands in for ubd-worker and stops at one step, so that a test can kill the broker, or the client, exactly there. A
 * worker gets no arguments and sees no file, so the step is in the program itself: the test changes the digit.
 *   0  never says a word                    1  tells a geometry, then stalls (the broker said "serve")
 *   2  dies at once                         3  says that its walls stand, which they do not
 *   4  says what no worker says             5  is fit as long as nobody gives it a device: passes a rehearsal, then dies
 * It stalls in poll(2), since the broker's filter, which it inherits, has no pause(2).
 */
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static volatile const char step[] = "ubd-stall-at-step-0";

/* Geometry of Sources/Shared/WorkerProtocol: a disk of 1 MiB. */
struct __attribute__((packed)) geometry {
    uint32_t kind;
    uint64_t bytes;
    uint32_t logical, physical, attributes, discard_granularity, discard_sectors, zeroes_sectors, major, minor, version;
    uint64_t file[3];
};

int main(void) {
    char digit = step[sizeof step - 2], byte;
    if (digit == '2') return 7;
    if (digit == '0') for (;;) poll(NULL, 0, -1);
    if (digit == '4') {
        (void)!write(3, "what?", 5);
        for (;;) poll(NULL, 0, -1);
    }
    /* The launch message; its files are left in the queue. */
    if (recv(3, &byte, 1, MSG_TRUNC) <= 0) return 8;
    struct geometry disk = {.kind = 0x55425701, .bytes = 1 << 20, .logical = 512, .physical = 4096, .version = 9 << 20};
    if (write(3, &disk, sizeof disk) != sizeof disk) return 9;
    if (recv(3, &byte, 1, MSG_TRUNC) <= 0) return 10;
    if (digit == '5') {
        struct stat device;
        if (fstat(4, &device) == -1 || device.st_rdev != makedev(1, 3)) return 12;
        /* Its rings would stand, the fetch fails: step 32 of WorkerFailure, ENODEV. */
        struct __attribute__((packed)) {
            uint32_t kind, step;
            int32_t error;
            uint64_t detail;
        } failed = {0x55425703, 32, 19, 0};
        if (write(3, &failed, sizeof failed) != sizeof failed) return 13;
        return 1;
    }
    if (digit == '3') {
        uint32_t sealed[] = {0x55425702, 7};
        if (write(3, sealed, sizeof sealed) != sizeof sealed) return 11;
    }
    for (;;) poll(NULL, 0, -1);
}
