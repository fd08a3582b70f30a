/* Makes one system call of a process fail, as a failing disk or a full table would; or sends a signal before it.
 *
 * Preloaded into a process (LD_PRELOAD), it counts the calls of each kind that concern files below a folder, and lets
 * call number N of one kind fail with an errno, or all of them for N = -2. fault_set arms it; fault_count returns the
 * count of a kind. Processes that a command starts arm themselves: TITOKCTL_SHIM holds a rank, a kind, N, the errno, a
 * process and the folder; a signal goes to that process, or to the one with the rank if it is 0.
 * Only files below the folder count, so that the interpreter and its libraries work on.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static char kind[32];
static const char *const KINDS[] = {"open",   "create", "read", "write",    "fsync", "close", "rename", "unlink",
                                    "rmdir",  "mkdir",  "link", "truncate", "stat",  "list",  "thread", "lock",   NULL};
static long wanted = -1, seen[32];
static int number = 0, is_counting = 0, target = 0;

static int index_of(const char *what) {
    int i = 0;
    while (KINDS[i] && strcmp(KINDS[i], what)) i++;
    return i;
}

void fault_set(const char *under, const char *what, long n, int error) {
    snprintf(folder, sizeof folder, "%s", under);
    snprintf(kind, sizeof kind, "%s", what);
    wanted = n, number = error, is_counting = n == -1;
    memset(seen, 0, sizeof seen);
}

__attribute__((constructor)) static void arm_by_environment(void) {
    const char *asked = getenv("TITOKCTL_SHIM"), *rank = getenv("RANK");
    char wanted_rank[16], what[32], under[PATH_MAX];
    long n;
    int error, process;
    if (!asked || !rank) return;
    if (sscanf(asked, "%15s %31s %ld %d %d %4095[^\n]", wanted_rank, what, &n, &error, &process, under) != 6) return;
    if (strcmp(rank, wanted_rank)) return;
    fault_set(under, what, n, error);
    target = process;
}

long fault_count(const char *what) { return seen[index_of(what)]; }

static int below(const char *path) {
    char here[PATH_MAX], whole[2 * PATH_MAX + 2];
    if (!path || !folder[0]) return 0;
    if (path[0] == '/') return strncmp(path, folder, strlen(folder)) == 0;
    if (!getcwd(here, sizeof here)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    return strncmp(whole, folder, strlen(folder)) == 0;
}

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (n <= 0) return 0;
    path[n] = 0;
    return below(path);
}

/* Returns 1 if this call is to fail. For a negative errno, the process gets that signal before the call instead. */
static int fails(const char *what, int concerned) {
    if (!folder[0] || !concerned) return 0;
    long n = __atomic_fetch_add(&seen[index_of(what)], 1, __ATOMIC_SEQ_CST);
    if (is_counting || strcmp(what, kind) || (wanted >= 0 && n != wanted)) return 0;
    if (number < 0) {
        kill(target ? target : getpid(), -number);
        return 0;
    }
    errno = number;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ARMED(what) (folder[0] && (is_counting || !strcmp(kind, what)))

#define OPENS(name, ...)                                                             \
    int mode = 0;                                                                    \
    if (flags & (O_CREAT | O_TMPFILE)) {                                             \
        va_list more;                                                                \
        va_start(more, flags);                                                       \
        mode = va_arg(more, int);                                                    \
        va_end(more);                                                                \
    }                                                                                \
    const char *what = (flags & (O_WRONLY | O_RDWR | O_CREAT)) ? "create" : "open";  \
    if (ARMED(what) && fails(what, below(path))) return -1;                          \
    return REAL(name)(__VA_ARGS__, flags, mode)

int open(const char *path, int flags, ...) { OPENS(open, path); }
int open64(const char *path, int flags, ...) { OPENS(open64, path); }
int openat(int at, const char *path, int flags, ...) { OPENS(openat, at, path); }
int openat64(int at, const char *path, int flags, ...) { OPENS(openat64, at, path); }

FILE *fopen(const char *path, const char *mode) {
    return ARMED("open") && fails("open", below(path)) ? NULL : REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    return ARMED("open") && fails("open", below(path)) ? NULL : REAL(fopen64)(path, mode);
}

#define ON_FD(what, result, name, parameters, ...)                            \
    result name parameters {                                                  \
        if (ARMED(what) && fails(what, below_fd(fd))) return (result)-1;      \
        return REAL(name)(__VA_ARGS__);                                       \
    }
#define ON_PATH(what, name, parameters, ...)                                  \
    int name parameters {                                                     \
        if (ARMED(what) && fails(what, below(path))) return -1;               \
        return REAL(name)(__VA_ARGS__);                                       \
    }

ON_FD("read", ssize_t, read, (int fd, void *data, size_t n), fd, data, n)
ON_FD("read", ssize_t, pread, (int fd, void *data, size_t n, off_t at), fd, data, n, at)
ON_FD("read", ssize_t, pread64, (int fd, void *data, size_t n, off64_t at), fd, data, n, at)
ON_FD("write", ssize_t, write, (int fd, const void *data, size_t n), fd, data, n)
ON_FD("write", ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), fd, data, n, at)
ON_FD("write", ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), fd, data, n, at)
ON_FD("write", ssize_t, writev, (int fd, const struct iovec *data, int n), fd, data, n)
ON_FD("fsync", int, fsync, (int fd), fd)
ON_FD("lock", int, flock, (int fd, int how), fd, how)
ON_FD("truncate", int, ftruncate, (int fd, off_t n), fd, n)
ON_FD("truncate", int, ftruncate64, (int fd, off64_t n), fd, n)
ON_PATH("rename", rename, (const char *path, const char *to), path, to)
ON_PATH("unlink", unlink, (const char *path), path)
ON_PATH("rmdir", rmdir, (const char *path), path)
ON_PATH("mkdir", mkdir, (const char *path, mode_t mode), path, mode)
ON_PATH("link", link, (const char *path, const char *to), path, to)
ON_PATH("stat", stat, (const char *path, struct stat *found), path, found)
ON_PATH("stat", lstat, (const char *path, struct stat *found), path, found)

DIR *opendir(const char *path) { return ARMED("list") && fails("list", below(path)) ? NULL : REAL(opendir)(path); }

/* These report the error instead of setting errno, or take an open folder. */
int posix_fallocate(int fd, off_t at, off_t n) {
    return ARMED("truncate") && fails("truncate", below_fd(fd)) ? errno : REAL(posix_fallocate)(fd, at, n);
}
int posix_fallocate64(int fd, off64_t at, off64_t n) {
    return ARMED("truncate") && fails("truncate", below_fd(fd)) ? errno : REAL(posix_fallocate64)(fd, at, n);
}
int renameat(int from, const char *path, int at, const char *to) {
    return ARMED("rename") && fails("rename", below(path)) ? -1 : REAL(renameat)(from, path, at, to);
}
int unlinkat(int at, const char *path, int flags) {
    return ARMED("unlink") && fails("unlink", path[0] != '/' ? below_fd(at) : below(path))
               ? -1 : REAL(unlinkat)(at, path, flags);
}
int linkat(int from, const char *path, int at, const char *to, int flags) {
    return ARMED("link") && fails("link", below(path)) ? -1 : REAL(linkat)(from, path, at, to, flags);
}
int fstatat(int at, const char *path, struct stat *found, int flags) {
    return ARMED("stat") && fails("stat", below(path)) ? -1 : REAL(fstatat)(at, path, found, flags);
}

/* close: the descriptor is closed, and what was written may be lost. */
int close(int fd) {
    int broken = ARMED("close") && fails("close", below_fd(fd));
    int result = REAL(close)(fd);
    if (broken) errno = number;
    return broken ? -1 : result;
}

/* A thread is no file, so all of them count. */
int pthread_create(pthread_t *made, const pthread_attr_t *how, void *(*what)(void *), void *with) {
    return ARMED("thread") && fails("thread", 1) ? number : REAL(pthread_create)(made, how, what, with);
}
