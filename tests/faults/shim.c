// Counts the calls that change files below one folder, and at the n-th of them fails, writes less, or
// ends the process. Preloaded; armed by faults_arm in the process that runs, after the fork.
//
// Not seen: system calls that a library makes without libc's functions, and what stdio writes when it
// flushes by itself (fwrite is seen, the write inside it and fclose are not).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT = 0, FAIL = 1, SHORT = 2, KILL = 3, HALF_KILL = 4, STOP = 5 };

#define TRACE 65536
static char root[PATH_MAX], trace[TRACE];
static const char *kinds = "";
static long wanted, seen, fired;
static int action, code, sticky, armed;

// kinds: the letters that count: o open, w write, s sync, r rename, u unlink, m mkdir, t truncate.
void faults_arm(const char *below, const char *letters, long n, int what, int error, int on) {
    snprintf(root, sizeof root, "%s", below);
    kinds = strdup(letters), wanted = n, action = what, code = error, sticky = on;
    seen = fired = 0;
    armed = 1;
}
long faults_fired(void) { return fired; }
const char *faults_trace(void) { return trace; }
void faults_disarm(void) { armed = 0; }

static int below(const char *path) {
    char full[PATH_MAX];
    if (path[0] != '/') {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return 0;
        if ((size_t)snprintf(full, sizeof full, "%s/%s", here, path) >= sizeof full) return 0;
        path = full;
    }
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

// What this call has to do; COUNT: go on as ever.
static int turn(char letter) {
    if (!strchr(kinds, letter)) return COUNT;
    if (seen < TRACE - 1) trace[seen] = letter;
    seen++;
    if (!wanted || (sticky ? seen < wanted : seen != wanted)) return COUNT;
    fired++;
    if (action == KILL || (action == HALF_KILL && letter != 'w')) die();
    if (action == STOP) {
        kill(getpid(), SIGSTOP);
        return COUNT;
    }
    if (action == SHORT && letter != 'w') return COUNT;
    return action;
}

#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define GUARD(letter, hit)                       \
    if (armed && (hit) && turn(letter) == FAIL) { \
        errno = code;                            \
        return -1;                               \
    }

#define CHANGES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & O_CREAT))
#define OPENER(name)                                                      \
    int name(const char *path, int flags, ...) {                          \
        REAL(int, #name, const char *, int, ...);                         \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                     \
        GUARD('o', CHANGES(flags) && below(path));                        \
        return real(path, flags, mode);                                   \
    }
OPENER(open)
OPENER(open64)
#define OPENER_AT(name)                                                   \
    int name(int folder, const char *path, int flags, ...) {              \
        REAL(int, #name, int, const char *, int, ...);                    \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                     \
        GUARD('o', CHANGES(flags) && below(path));                        \
        return real(folder, path, flags, mode);                           \
    }
OPENER_AT(openat)
OPENER_AT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!armed || !below_fd(fd)) return real(fd, data, size);
    switch (turn('w')) {
        case FAIL: errno = code; return -1;
        case SHORT: return real(fd, data, size > 1 ? size / 2 : size);
        case HALF_KILL: real(fd, data, size / 2); die();
    }
    return real(fd, data, size);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    REAL(size_t, "fwrite", const void *, size_t, size_t, FILE *);
    if (!armed || !below_fd(fileno(file))) return real(data, size, count, file);
    switch (turn('w')) {
        case FAIL: errno = code; return 0;
        case SHORT: return real(data, size, count / 2, file);
        case HALF_KILL: real(data, size, count / 2, file), fflush(file); die();
    }
    return real(data, size, count, file);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    GUARD('w', below_fd(fd));
    return real(fd, parts, count);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    GUARD('w', below_fd(fd));
    return real(fd, data, size, at);
}
int fsync(int fd) {
    REAL(int, "fsync", int);
    GUARD('s', below_fd(fd));
    return real(fd);
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    GUARD('s', below_fd(fd));
    return real(fd);
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    GUARD('r', below(to));
    return real(from, to);
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    GUARD('r', below(to));
    return real(from_folder, from, to_folder, to);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    GUARD('u', below(path));
    return real(path);
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    GUARD('u', below(path));
    return real(path);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    GUARD('m', below(path));
    return real(path, mode);
}
int ftruncate64(int fd, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    GUARD('t', below_fd(fd));
    return real(fd, size);
}
int ftruncate(int fd, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    GUARD('t', below_fd(fd));
    return real(fd, size);
}
