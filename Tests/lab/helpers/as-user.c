/* Runs a command as a user: her groups, no inheritable capability, a fresh environment in which PATH and UBD_SOCKET stay.
 * usage: as-user USER COMMAND [ARGUMENT...]
 * It is `setpriv --reuid --regid --init-groups --inh-caps=-all --reset-env env PATH=... UBD_SOCKET=... COMMAND` as one
 * static program: groups do that thousands of times, and each start of a dynamic program costs an emulated machine
 * milliseconds. The user data base is read with fgetpwent(3), which needs no library at run time as getpwnam(3) does.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FAILED 127

static struct passwd *user_named(const char *name) {
    FILE *users = fopen("/etc/passwd", "re");
    if (!users) err(FAILED, "/etc/passwd");
    struct passwd *user;
    while ((user = fgetpwent(users)) && strcmp(user->pw_name, name)) {}
    if (!user) errx(FAILED, "no user %s", name);
    fclose(users);
    return user;
}

static void join_groups(const struct passwd *user) {
    gid_t groups[64] = {user->pw_gid};
    size_t count = 1;
    FILE *all = fopen("/etc/group", "re");
    if (!all) err(FAILED, "/etc/group");
    for (struct group *group; (group = fgetgrent(all));)
        for (char **member = group->gr_mem; *member; member++)
            if (!strcmp(*member, user->pw_name) && group->gr_gid != user->pw_gid) {
                if (count == sizeof groups / sizeof *groups) errx(FAILED, "user %s has too many groups", user->pw_name);
                groups[count++] = group->gr_gid;
            }
    fclose(all);
    if (setgroups(count, groups)) err(FAILED, "setgroups");
}

/* As `setpriv --inh-caps=-all`; what else there is goes with the change from uid 0. Ambient ones must be inheritable. */
static void drop_inheritable_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    if (syscall(SYS_capget, &header, data)) err(FAILED, "capget");
    for (int n = 0; n < _LINUX_CAPABILITY_U32S_3; n++) data[n].inheritable = 0;
    if (syscall(SYS_capset, &header, data)) err(FAILED, "capset");
}

static void keep(const char *name, const char *value) {
    if (value && setenv(name, value, 1)) err(FAILED, "setenv");
}

int main(int count, char **arguments) {
    if (count < 3) errx(FAILED, "usage: as-user USER COMMAND [ARGUMENT...]");
    struct passwd *user = user_named(arguments[1]);
    const char *path = getenv("PATH"), *terminal = getenv("TERM"), *socket = getenv("UBD_SOCKET");
    /* clearenv(3) leaves the strings themselves alone. */
    clearenv();
    keep("PATH", path ? path : "/usr/local/bin:/usr/bin:/bin");
    keep("TERM", terminal);
    keep("UBD_SOCKET", socket);
    keep("HOME", user->pw_dir);
    keep("SHELL", *user->pw_shell ? user->pw_shell : "/bin/sh");
    keep("USER", user->pw_name);
    keep("LOGNAME", user->pw_name);
    join_groups(user);
    drop_inheritable_capabilities();
    if (setresgid(user->pw_gid, user->pw_gid, user->pw_gid)) err(FAILED, "setresgid");
    if (setresuid(user->pw_uid, user->pw_uid, user->pw_uid)) err(FAILED, "setresuid");
    execvp(arguments[2], arguments + 2);
    err(errno == ENOENT ? 127 : 126, "%s", arguments[2]);
}
