/* Connects to the broker again and again, from many processes of one user, for so many seconds; prints how often.
 * usage: connect-flood UID PROCESSES SECONDS close|hear|fill [GROUPS]
 * close: each connection is closed at once. hear: not before the broker has said something, or hung up. fill: as hear, and
 * before that as many bytes are put into it as it takes.
 * GROUPS: the user is in so many groups, those from 100000 on, as /etc/subgid lets one be.
 */
#define _GNU_SOURCE
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int become(uid_t uid, size_t groups) {
    gid_t *list = calloc(groups + 1, sizeof *list);
    if (!list) return -1;
    for (size_t i = 0; i < groups; i++) list[i] = (gid_t)(100000 + i);
    int result = setgroups(groups, list);
    free(list);
    return result || setresgid(uid, uid, uid) || setresuid(uid, uid, uid) ? -1 : 0;
}

static long flood(double end, int hears, int fills) {
    static const char zeros[65536];
    struct sockaddr_un broker = {.sun_family = AF_UNIX, .sun_path = "/run/ubd/io.ubd.Broker"};
    struct timeval patience = {1, 0};
    char answer[4096];
    long count = 0;
    while (now() < end) {
        int link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (link == -1) break;
        setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (connect(link, (struct sockaddr *)&broker, sizeof broker) == 0) {
            count++;
            while (fills && send(link, zeros, sizeof zeros, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
            }
            if (hears) (void)recv(link, answer, sizeof answer, 0);
        }
        close(link);
    }
    return count;
}

int main(int count, char **words) {
    if (count < 5) return 2;
    int processes = atoi(words[2]), ends[2];
    double end = now() + atof(words[3]);
    if (become((uid_t)atoi(words[1]), count > 5 ? (size_t)atoi(words[5]) : 0) || pipe(ends)) return 1;
    for (int i = 0; i < processes; i++)
        if (fork() == 0) {
            int fills = strcmp(words[4], "fill") == 0;
            long connections = flood(end, fills || strcmp(words[4], "hear") == 0, fills);
            _exit(write(ends[1], &connections, sizeof connections) != sizeof connections);
        }
    close(ends[1]);
    long all = 0, some;
    while (read(ends[0], &some, sizeof some) == sizeof some) all += some;
    printf("%ld\n", all);
    return 0;
}
