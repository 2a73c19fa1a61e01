/* File calls that fail, for LD_PRELOAD: below the folder FAULTY_BELOW, the FAULTY_AT-th call of the kinds FAULTY_CALLS
 * ("write,fsync,rename,open,mkdir,unlink") fails with FAULTY_ERRNO, or, with errno 0, writes only half. Calls are
 * counted over all processes in the file FAULTY_COUNT (8 bytes, shared); FAULTY_STAYS=1: every later call fails too.
 *
 *     gcc -shared -fPIC -O1 -o faulty.so faulty.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long *counter;
static long fault_at;
static int fault_errno, fault_stays;
static char below[PATH_MAX];
static char calls[256];

/* Called by a fork of a process that was started with nothing set, and at every start. */
__attribute__((constructor)) void faulty_begin(void) {
    const char *at = getenv("FAULTY_AT"), *file = getenv("FAULTY_COUNT"), *folder = getenv("FAULTY_BELOW");
    if (!at || !file || !folder)
        return;
    int descriptor = syscall(SYS_openat, AT_FDCWD, file, O_RDWR);
    if (descriptor < 0)
        return;
    void *shared = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (shared == MAP_FAILED)
        return;
    snprintf(below, sizeof below, "%s/", folder);
    snprintf(calls, sizeof calls, ",%s,", getenv("FAULTY_CALLS"));
    fault_at = atol(at);
    fault_errno = atoi(getenv("FAULTY_ERRNO"));
    fault_stays = getenv("FAULTY_STAYS") && *getenv("FAULTY_STAYS") == '1';
    counter = shared;
}

static int inside(const char *path) { return strncmp(path, below, strlen(below)) == 0; }

static int path_inside(int folder, const char *path) {
    char full[PATH_MAX];
    if (path[0] == '/')
        return inside(path);
    if (folder == AT_FDCWD) {
        if (!getcwd(full, sizeof full))
            return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, full, sizeof full - 1);
        if (length < 0)
            return 0;
        full[length] = 0;
    }
    strncat(full, "/", sizeof full - strlen(full) - 1);
    strncat(full, path, sizeof full - strlen(full) - 1);
    return inside(full);
}

static int descriptor_inside(int descriptor) {
    char link[64], full[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, full, sizeof full - 1);
    if (length < 0)
        return 0;
    full[length] = 0;
    return inside(full);
}

/* Whether this call, which is one below the folder, fails. */
static int fails(const char *call) {
    char name[32];
    snprintf(name, sizeof name, ",%s,", call);
    if (!strstr(calls, name))
        return 0;
    long number = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
    return number == fault_at || (fault_stays && number > fault_at);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FAIL do { errno = fault_errno ? fault_errno : EIO; return -1; } while (0)

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    if (counter && descriptor_inside(descriptor) && fails("write")) {
        if (fault_errno || size < 2) FAIL;
        return real(descriptor, data, size / 2);
    }
    return real(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    if (counter && descriptor_inside(descriptor) && fails("write")) {
        if (fault_errno || size < 2) FAIL;
        return real(descriptor, data, size / 2, at);
    }
    return real(descriptor, data, size, at);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    if (counter && descriptor_inside(descriptor) && fails("write")) {
        if (fault_errno || size < 2) FAIL;
        return real(descriptor, data, size / 2, at);
    }
    return real(descriptor, data, size, at);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(writev);
    if (counter && descriptor_inside(descriptor) && fails("write")) {
        if (fault_errno || count < 2) FAIL;
        return real(descriptor, parts, count - 1);
    }
    return real(descriptor, parts, count);
}

ssize_t sendfile(int out, int in, off_t *at, size_t size) {
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real) real = (ssize_t (*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile");
    if (counter && descriptor_inside(out) && fails("write")) {
        if (fault_errno || size < 2) FAIL;
        return real(out, in, at, size / 2);
    }
    return real(out, in, at, size);
}

ssize_t sendfile64(int out, int in, off64_t *at, size_t size) { return sendfile(out, in, (off_t *)at, size); }

int fsync(int descriptor) {
    REAL(fsync);
    if (counter && descriptor_inside(descriptor) && fails("fsync")) FAIL;
    return real(descriptor);
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(ftruncate64);
    if (counter && descriptor_inside(descriptor) && fails("truncate")) FAIL;
    return real(descriptor, size);
}

int ftruncate(int descriptor, off_t size) {
    REAL(ftruncate);
    if (counter && descriptor_inside(descriptor) && fails("truncate")) FAIL;
    return real(descriptor, size);
}

int rename(const char *old, const char *new) {
    REAL(rename);
    if (counter && path_inside(AT_FDCWD, new) && fails("rename")) FAIL;
    return real(old, new);
}

int renameat(int from, const char *old, int to, const char *new) {
    REAL(renameat);
    if (counter && path_inside(to, new) && fails("rename")) FAIL;
    return real(from, old, to, new);
}

int unlink(const char *path) {
    REAL(unlink);
    if (counter && path_inside(AT_FDCWD, path) && fails("unlink")) FAIL;
    return real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (counter && path_inside(AT_FDCWD, path) && fails("mkdir")) FAIL;
    return real(path, mode);
}

static int opened(int folder, const char *path, int flags) {
    return counter && (flags & (O_CREAT | O_WRONLY | O_RDWR)) && path_inside(folder, path) && fails("open");
}

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    MODE
    if (opened(AT_FDCWD, path, flags)) FAIL;
    return real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    MODE
    if (opened(AT_FDCWD, path, flags)) FAIL;
    return real(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    static int (*real)(int, const char *, int, ...);
    if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat");
    MODE
    if (opened(folder, path, flags)) FAIL;
    return real(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    static int (*real)(int, const char *, int, ...);
    if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat64");
    MODE
    if (opened(folder, path, flags)) FAIL;
    return real(folder, path, flags, mode);
}
