/* SCM_RIGHTS control data. Swift does not import the CMSG_* macros. */
#pragma once
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

/* Bytes of control buffer for `count` files. */
static inline size_t ubd_rights_space(size_t count) { return CMSG_SPACE(count * sizeof(int)); }

/* Fills a control buffer of ubd_rights_space(count) bytes. */
static inline void ubd_rights_write(void *control, const int *fds, size_t count) {
    struct msghdr message = {.msg_control = control, .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    memset(control, 0, message.msg_controllen);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, count * sizeof(int));
}

/* Copies at most `room` files that arrived with `message` to `fds`. Returns the number of files that arrived. */
static inline size_t ubd_rights_read(struct msghdr *message, int *fds, size_t room) {
    size_t found = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(message); h; h = CMSG_NXTHDR(message, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++, found++)
            if (found < room) memcpy(&fds[found], CMSG_DATA(h) + i * sizeof(int), sizeof(int));
    }
    return found;
}
