/* Fails chosen calls of a real process with a chosen errno, as the kernel would: below Python, SQLite and every library.
 *
 * Loaded with LD_PRELOAD. ERRNOS_CONTROL names a file of 4096 bytes that the test and every process map; ERRNOS_ROLE says
 * who this process is. While `recording`, each call is appended to the log as `role operation name`. While `armed`, calls
 * of that role, operation and name fail with `number`, after `skip` of them, `count` times.
 *
 * A name is the last part of the path of a file below `root`; long names, which hold ids, become `*` and their suffix.
 * Files elsewhere count as `/name`. Reads and writes count for files below `root` only: sockets and pipes are peers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <dirent.h>
#include <unistd.h>

#define FILES 4096
#define NAME 48

struct control {
    atomic_int armed, recording, role, number;
    atomic_long skip, count, seen, fired;
    char operation[32];
    char name[NAME];
    char root[256];
};

static struct control *control;
static int role, log_descriptor = -1;
static char names[FILES][NAME];

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("ERRNOS_CONTROL"), *who = getenv("ERRNOS_ROLE");
    if (!path || !who) return;
    role = atoi(who);
    int descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (descriptor < 0) return;
    void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    syscall(SYS_close, descriptor);
    if (map == MAP_FAILED) return;
    control = map;
    char log[512];
    snprintf(log, sizeof log, "%s.log", path);
    int low = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    log_descriptor = (int)syscall(SYS_fcntl, low, F_DUPFD_CLOEXEC, 900);
    syscall(SYS_close, low);
}

static void short_name(char *into, const char *path, int below) {
    const char *last = strrchr(path, '/');
    last = last ? last + 1 : path;
    const char *dot = strchr(*last == '.' ? last + 1 : last, '.');
    size_t stem = dot ? (size_t)(dot - last) : strlen(last);
    int digits = stem > 0;
    for (size_t at = 0; at < stem; at++) digits &= last[at] >= '0' && last[at] <= '9';
    if (stem >= 20 || digits)
        snprintf(into, NAME, "%s*%.20s", below ? "" : "/", dot ? dot : "");
    else
        snprintf(into, NAME, "%s%.40s", below ? "" : "/", last);
    size_t end = strlen(into);
    if (below && end && !strchr(into, '*') && into[end - 1] >= '0' && into[end - 1] <= '9') {
        while (end && into[end - 1] >= '0' && into[end - 1] <= '9') end--;
        snprintf(into + end, NAME - end, "*");
    }
}

static int is_below(int folder, const char *path) {
    if (path[0] == '/') return !strncmp(path, control->root, strlen(control->root));
    return folder >= 0 && folder < FILES && names[folder][0] && names[folder][0] != '/';
}

/* Whether this call is to fail; errno is set then. */
static int fails(const char *operation, const char *name) {
    if (!control) return 0;
    if (atomic_load(&control->recording)) {
        char line[128];
        int length = snprintf(line, sizeof line, "%d %s %s\n", role, operation, name);
        syscall(SYS_write, log_descriptor, line, length);
    }
    if (!atomic_load(&control->armed) || atomic_load(&control->role) != role) return 0;
    if (strcmp(control->operation, operation)) return 0;
    if (strcmp(control->name, name)) return 0;
    long seen = atomic_fetch_add(&control->seen, 1);
    if (seen < atomic_load(&control->skip)) return 0;
    if (atomic_fetch_add(&control->fired, 1) >= atomic_load(&control->count)) return 0;
    errno = atomic_load(&control->number);
    return 1;
}

static int fails_path(const char *operation, int folder, const char *path) {
    char name[NAME];
    if (!control || !path) return 0;
    short_name(name, path, is_below(folder, path));
    return fails(operation, name);
}

static int fails_file(const char *operation, int descriptor) {
    if (!control || descriptor < 0 || descriptor >= FILES || !names[descriptor][0] || names[descriptor][0] == '/') return 0;
    return fails(operation, names[descriptor]);
}

static int opened(int descriptor, int folder, const char *path) {
    if (control && descriptor >= 0 && descriptor < FILES && path) short_name(names[descriptor], path, is_below(folder, path));
    return descriptor;
}

static int copied(int descriptor, int from) {
    if (control && descriptor >= 0 && descriptor < FILES && from >= 0 && from < FILES && descriptor != from)
        memcpy(names[descriptor], names[from], NAME);
    return descriptor;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define MODE mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open64(const char *path, int flags, ...) {
    REAL(int, open64, const char *, int, ...); MODE
    return fails_path("open", -1, path) ? -1 : opened(real(path, flags, mode), -1, path);
}
int open(const char *path, int flags, ...) {
    REAL(int, open, const char *, int, ...); MODE
    return fails_path("open", -1, path) ? -1 : opened(real(path, flags, mode), -1, path);
}
int openat64(int folder, const char *path, int flags, ...) {
    REAL(int, openat64, int, const char *, int, ...); MODE
    return fails_path("open", folder, path) ? -1 : opened(real(folder, path, flags, mode), folder, path);
}
int close(int descriptor) {
    REAL(int, close, int);
    if (control && descriptor >= 0 && descriptor < FILES) names[descriptor][0] = 0;
    return real(descriptor);
}
DIR *opendir(const char *path) {
    REAL(DIR *, opendir, const char *);
    return fails_path("opendir", -1, path) ? NULL : real(path);
}
DIR *fdopendir(int descriptor) {
    REAL(DIR *, fdopendir, int);
    return fails_file("opendir", descriptor) ? NULL : real(descriptor);
}

#define PATH_CALL(call, operation, types, arguments, path) \
    int call types { static int (*real) types; if (!real) real = (int (*) types)dlsym(RTLD_NEXT, #call); \
    return fails_path(operation, -1, path) ? -1 : real arguments; }
#define AT_CALL(call, operation, types, arguments, folder, path) \
    int call types { static int (*real) types; if (!real) real = (int (*) types)dlsym(RTLD_NEXT, #call); \
    return fails_path(operation, folder, path) ? -1 : real arguments; }
#define FILE_CALL(result, call, operation, types, arguments, descriptor) \
    result call types { static result (*real) types; if (!real) real = (result (*) types)dlsym(RTLD_NEXT, #call); \
    return fails_file(operation, descriptor) ? -1 : real arguments; }
#define PLAIN_CALL(result, call, types, arguments) \
    result call types { static result (*real) types; if (!real) real = (result (*) types)dlsym(RTLD_NEXT, #call); \
    return fails(#call, "-") ? -1 : real arguments; }

PATH_CALL(stat64, "stat", (const char *path, struct stat64 *into), (path, into), path)
PATH_CALL(lstat64, "stat", (const char *path, struct stat64 *into), (path, into), path)
PATH_CALL(statvfs64, "statvfs", (const char *path, struct statvfs64 *into), (path, into), path)
PATH_CALL(access, "access", (const char *path, int mode), (path, mode), path)
PATH_CALL(mkdir, "mkdir", (const char *path, mode_t mode), (path, mode), path)
PATH_CALL(rmdir, "rmdir", (const char *path), (path), path)
PATH_CALL(unlink, "unlink", (const char *path), (path), path)
PATH_CALL(chmod, "chmod", (const char *path, mode_t mode), (path, mode), path)
PATH_CALL(rename, "rename", (const char *from, const char *to), (from, to), to)
AT_CALL(faccessat, "access", (int folder, const char *path, int mode, int flags), (folder, path, mode, flags), folder, path)
AT_CALL(mkdirat, "mkdir", (int folder, const char *path, mode_t mode), (folder, path, mode), folder, path)
AT_CALL(unlinkat, "unlink", (int folder, const char *path, int flags), (folder, path, flags), folder, path)
AT_CALL(fchmodat, "chmod", (int folder, const char *path, mode_t mode, int flags), (folder, path, mode, flags), folder, path)
AT_CALL(fstatat64, "stat", (int folder, const char *path, struct stat64 *into, int flags), (folder, path, into, flags), folder, path)
AT_CALL(renameat, "rename", (int one, const char *from, int other, const char *to), (one, from, other, to), other, to)

int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    REAL(int, utimensat, int, const char *, const struct timespec[2], int);
    return fails_path("utime", folder, path) ? -1 : real(folder, path, times, flags);
}
int futimens(int descriptor, const struct timespec times[2]) {
    REAL(int, futimens, int, const struct timespec[2]);
    return fails_file("utime", descriptor) ? -1 : real(descriptor, times);
}

FILE_CALL(int, fstat64, "fstat", (int file, struct stat64 *into), (file, into), file)
FILE_CALL(int, fsync, "fsync", (int file), (file), file)
FILE_CALL(int, fdatasync, "fsync", (int file), (file), file)
FILE_CALL(int, ftruncate64, "truncate", (int file, off64_t size), (file, size), file)
FILE_CALL(int, fchmod, "chmod", (int file, mode_t mode), (file, mode), file)
FILE_CALL(int, fchown, "chown", (int file, uid_t uid, gid_t gid), (file, uid, gid), file)
FILE_CALL(ssize_t, read, "read", (int file, void *into, size_t size), (file, into, size), file)
FILE_CALL(ssize_t, write, "write", (int file, const void *from, size_t size), (file, from, size), file)
FILE_CALL(ssize_t, pread64, "read", (int file, void *into, size_t size, off64_t at), (file, into, size, at), file)
FILE_CALL(ssize_t, pwrite64, "write", (int file, const void *from, size_t size, off64_t at), (file, from, size, at), file)

int fcntl64(int descriptor, int command, ...) {
    REAL(int, fcntl64, int, int, ...);
    va_list more;
    va_start(more, command);
    void *argument = va_arg(more, void *);
    va_end(more);
    if ((command == F_SETLK || command == F_SETLKW) && fails_file("lock", descriptor)) return -1;
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        return fails_file("dup", descriptor) ? -1 : copied(real(descriptor, command, argument), descriptor);
    return real(descriptor, command, argument);
}

PLAIN_CALL(int, socket, (int family, int kind, int protocol), (family, kind, protocol))
PLAIN_CALL(int, socketpair, (int family, int kind, int protocol, int two[2]), (family, kind, protocol, two))
PLAIN_CALL(int, accept4, (int file, struct sockaddr *address, socklen_t *size, int flags), (file, address, size, flags))
PLAIN_CALL(int, pipe2, (int two[2], int flags), (two, flags))
PLAIN_CALL(pid_t, fork, (void), ())
pid_t vfork(void) { return fork(); } /* a wrapper may not return from a real one; a fork is always allowed in its place */

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                char *const arguments[], char *const environment[]) {
    REAL(int, posix_spawn, pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],
         char *const[]);
    return fails("spawn", "-") ? errno : real(pid, path, actions, attributes, arguments, environment);
}
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*work)(void *), void *argument) {
    REAL(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    return fails("thread", "-") ? errno : real(thread, attributes, work, argument);
}
