/* Runs a program and meddles with its system calls, counted over all of its threads, so that what happens once
 * happens again:
 *
 *     meddle [CALL PATTERN COUNT ACTION]... -- PROGRAM [ARGUMENT]...
 *
 * The COUNT-th CALL whose place is like PATTERN (fnmatch) is not made as it is. ACTION is `error=NUMBER`,
 * `value=NUMBER` (it seems to have succeeded), `kind=NUMBER` (of a newfstatat: the file is of such a kind), or
 * `run=COMMAND`, which a shell runs before the call is made. With a
 * `+` behind COUNT all later ones are meddled with, too. The place of a call on an open file is the file's path; of
 * one with two paths it is `FROM > TO`. With MEDDLE_LOG in the environment, every call seen is told there.
 *
 * It sees them by seccomp's user notification (Linux 5.5), which, other than a tracer's counts, is one queue. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum place { NONE, FD, AT, TWO_AT, PATH };
static const struct call {
    const char *name;
    int number;
    enum place place;
} CALLS[] = {
    {"openat", SYS_openat, AT},         {"openat2", SYS_openat2, AT},       {"mkdirat", SYS_mkdirat, AT},
    {"unlinkat", SYS_unlinkat, AT},     {"symlinkat", SYS_symlinkat, NONE}, {"newfstatat", SYS_newfstatat, AT},
    {"statx", SYS_statx, AT},           {"readlinkat", SYS_readlinkat, AT}, {"fchmodat", SYS_fchmodat, AT},
    {"fchownat", SYS_fchownat, AT},     {"utimensat", SYS_utimensat, AT},   {"linkat", SYS_linkat, TWO_AT},
    {"renameat", SYS_renameat, TWO_AT}, {"renameat2", SYS_renameat2, TWO_AT}, {"getdents64", SYS_getdents64, FD},
    {"fsync", SYS_fsync, FD},           {"fdatasync", SYS_fdatasync, FD},   {"fstat", SYS_fstat, FD},
    {"read", SYS_read, FD},             {"pread64", SYS_pread64, FD},       {"write", SYS_write, FD},
    {"pwrite64", SYS_pwrite64, FD},     {"ftruncate", SYS_ftruncate, FD},   {"fchmod", SYS_fchmod, FD},
    {"fchown", SYS_fchown, FD},         {"flock", SYS_flock, FD},           {"fcntl", SYS_fcntl, FD},
    {"ioctl", SYS_ioctl, FD},           {"lseek", SYS_lseek, FD},           {"copy_file_range", SYS_copy_file_range, FD},
    {"getrandom", SYS_getrandom, NONE}, {"rt_sigaction", SYS_rt_sigaction, NONE},
    {"flistxattr", SYS_flistxattr, FD}, {"fgetxattr", SYS_fgetxattr, FD},   {"fsetxattr", SYS_fsetxattr, FD},
    {"llistxattr", SYS_llistxattr, PATH}, {"lgetxattr", SYS_lgetxattr, PATH}, {"getxattr", SYS_getxattr, PATH},
    {"syncfs", SYS_syncfs, FD},         {"getcwd", SYS_getcwd, NONE},     {"mmap", SYS_mmap, NONE},
#ifdef SYS_rename
    {"rename", SYS_rename, PATH},       {"unlink", SYS_unlink, PATH},       {"mkdir", SYS_mkdir, PATH},
    {"rmdir", SYS_rmdir, PATH},         {"stat", SYS_stat, PATH},           {"lstat", SYS_lstat, PATH},
    {"open", SYS_open, PATH},           {"readlink", SYS_readlink, PATH},   {"access", SYS_access, PATH},
#endif
};
enum { CALL_COUNT = sizeof CALLS / sizeof *CALLS, MOST = 16, LONGEST = 8192 };

static struct rule {
    const struct call *call;
    const char *pattern, *action;
    long count, seen;
    int later;
} rules[MOST];

static void die(const char *what) {
    fprintf(stderr, "meddle: %s: %s\n", what, strerror(errno));
    exit(99);
}

static const struct call *find(const char *name) {
    for (size_t i = 0; i < CALL_COUNT; i++)
        if (!strcmp(CALLS[i].name, name)) return &CALLS[i];
    fprintf(stderr, "meddle: no such call: %s\n", name);
    exit(99);
}

/* Make a listener for the calls that are in rules. */
static int listen_to(int count) {
    struct sock_filter code[MOST + 4];
    unsigned short at = 0;
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < count; i++)
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)rules[i].call->number,
                                                  (unsigned char)(count - i), 0);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    struct sock_fprog program = {at, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
    int listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (listener < 0) die("seccomp");
    return listener;
}

union room {
    struct cmsghdr head;
    char space[CMSG_SPACE(sizeof(int))];
};

static void send_it(int socket, int fd) {
    char byte = 0;
    union room room = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    if (sendmsg(socket, &message, 0) != 1) die("sendmsg");
}

static int take_it(int socket) {
    char byte;
    int fd = -1;
    union room room;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    if (recvmsg(socket, &message, 0) != 1) return -1;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head) memcpy(&fd, CMSG_DATA(head), sizeof fd);
    return fd;
}

static void path_of_fd(int pid, int fd, char *into, size_t room) {
    char link[64];
    if (fd == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/%d/cwd", pid);
    else
        snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, fd);
    ssize_t length = readlink(link, into, room - 1);
    into[length < 0 ? 0 : length] = 0;
}

/* A name that the program has in its memory, behind the directory that it is in. */
static void path_at(int pid, int dir, unsigned long long address, char *into, size_t room) {
    char name[LONGEST] = {0}, file[64];
    snprintf(file, sizeof file, "/proc/%d/mem", pid);
    int memory = open(file, O_RDONLY | O_CLOEXEC);
    if (memory < 0) die("the memory of the program");
    /* It may end with the page. */
    size_t first = 4096 - address % 4096, length = 0;
    if (address && pread(memory, name, first, (off_t)address) > 0 && !memchr(name, 0, first))
        length = first;
    if (length && pread(memory, name + length, 4096, (off_t)(address + length)) < 0) name[length] = 0;
    close(memory);
    if (name[0] == '/') {
        snprintf(into, room, "%s", name);
        return;
    }
    char base[LONGEST];
    path_of_fd(pid, dir, base, sizeof base);
    snprintf(into, room, name[0] ? "%s/%s" : "%s", base, name);
}

static void place_of(const struct call *call, const struct seccomp_notif *seen, char *into, size_t room) {
    const __u64 *args = seen->data.args;
    int pid = (int)seen->pid;
    into[0] = 0;
    switch (call->place) {
    case NONE: break;
    case FD: path_of_fd(pid, (int)args[0], into, room); break;
    case AT: path_at(pid, (int)args[0], args[1], into, room); break;
    case PATH: path_at(pid, AT_FDCWD, args[0], into, room); break;
    case TWO_AT: {
        static char from[2 * LONGEST], to[2 * LONGEST];
        path_at(pid, (int)args[0], args[1], from, sizeof from);
        path_at(pid, (int)args[2], args[3], to, sizeof to);
        snprintf(into, room, "%s > %s", from, to);
    }
    }
}

/* What is known of a file, but of another kind. */
static void of_another_kind(const struct seccomp_notif *seen, const char *place, unsigned kind) {
    struct stat found;
    char file[64];
    snprintf(file, sizeof file, "/proc/%u/mem", seen->pid);
    int memory = open(file, O_WRONLY | O_CLOEXEC);
    if (memory < 0 || lstat(place, &found)) die(place);
    found.st_mode = (found.st_mode & 07777) | kind;
    if (pwrite(memory, &found, sizeof found, (off_t)seen->data.args[2]) < 0) die("the answer to newfstatat");
    close(memory);
}

static void answer(int listener, const struct seccomp_notif *seen, int count, FILE *log) {
    static char place[4 * LONGEST + 8];
    struct seccomp_notif_resp with = {.id = seen->id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    const char *told = NULL;
    for (int i = 0; i < count; i++) {
        struct rule *rule = &rules[i];
        if (rule->call->number != seen->data.nr) continue;
        place_of(rule->call, seen, place, sizeof place);
        if (log && told != rule->call->name) fprintf(log, "%s %s\n", told = rule->call->name, place);
        if (fnmatch(rule->pattern, place, 0)) continue;
        rule->seen++;
        if (rule->seen < rule->count || (rule->seen > rule->count && !rule->later)) continue;
        const char *value = strchr(rule->action, '=');
        if (!value) die("an action without a value");
        value++;
        if (!strncmp(rule->action, "run", 3)) {
            if (system(value)) fprintf(stderr, "meddle: failed: %s\n", value);
            continue;
        }
        with.flags = 0;
        if (!strncmp(rule->action, "error", 5))
            with.error = -atoi(value);
        else if (!strncmp(rule->action, "kind", 4))
            of_another_kind(seen, place, (unsigned)strtoul(value, NULL, 8));
        else
            with.val = atoll(value);
        break;
    }
    /* Who asked may be gone. */
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &with) && errno != ENOENT) die("an answer");
}

int main(int argc, char **argv) {
    int at = 1, count = 0;
    while (at < argc && strcmp(argv[at], "--")) {
        if (at + 4 >= argc || count == MOST) die("rules");
        char *end;
        struct rule *rule = &rules[count++];
        *rule = (struct rule){.call = find(argv[at]), .pattern = argv[at + 1], .action = argv[at + 3]};
        rule->count = strtol(argv[at + 2], &end, 10);
        rule->later = *end == '+';
        at += 4;
    }
    if (at + 1 >= argc) die("no program");
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) die("socketpair");
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        send_it(ends[1], listen_to(count));
        execvp(argv[at + 1], argv + at + 1);
        die(argv[at + 1]);
    }
    close(ends[1]);
    int listener = take_it(ends[0]);
    const char *told = getenv("MEDDLE_LOG");
    FILE *log = told ? fopen(told, "ae") : NULL;
    struct pollfd waiting = {.fd = listener, .events = POLLIN};
    while (listener >= 0) {
        if (poll(&waiting, 1, -1) < 0 && errno != EINTR) die("poll");
        if (waiting.revents & POLLIN) {
            struct seccomp_notif seen = {0};
            if (!ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &seen)) answer(listener, &seen, count, log);
        } else if (waiting.revents & (POLLHUP | POLLERR)) {
            break;
        }
    }
    int status;
    if (waitpid(child, &status, 0) < 0) die("wait");
    for (int i = 0; i < count; i++)
        if (rules[i].seen < rules[i].count)
            fprintf(stderr, "meddle: %s of %s: %ld seen\n", rules[i].call->name, rules[i].pattern, rules[i].seen);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
