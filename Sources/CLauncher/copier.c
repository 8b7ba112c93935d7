#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static _Noreturn void become_copier(const char *path, int pipe) {
    static char buffer[1 << 16];
    if (ubd_keep_only(&pipe, 1) == -1) _exit(errno);
    ubd_report(pipe, UBD_LAUNCH_BEGUN, 0);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count;
    while ((count = file == -1 ? -1 : read(file, buffer, sizeof buffer)) > 0)
        for (ssize_t done = 0, more; done < count; done += more)
            if ((more = write(pipe, buffer + done, (size_t)(count - done))) == -1) _exit(errno);
    _exit(count == -1 ? errno : 0);
}

int ubd_copy(const char *path, struct ubd_child *child) {
    int ends[2], pidfd = -1;
    if (pipe2(ends, O_CLOEXEC) == -1) return -errno;
    pid_t pid = ubd_start(0, &pidfd);
    if (pid == 0) become_copier(path, ends[1]);
    int error = pid == -1 ? -errno : 0;
    close(ends[1]);
    if (error) {
        close(ends[0]);
        return error;
    }
    struct ubd_launch_report first;
    ubd_wait_until_begun(ends[0]);
    /* A child that fails before this report gives the reason in its exit status. */
    while (read(ends[0], &first, sizeof first) == -1 && errno == EINTR) continue;
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    *child = (struct ubd_child){pid, pidfd, ends[0]};
    return 0;
}
